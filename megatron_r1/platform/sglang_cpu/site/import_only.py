"""Modules that can be imported, with every attribute and submodule there is, and not used.

SGLang and transformers import torchvision and triton at the top of modules of which a server for
text on a CPU uses other parts.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

Call = Callable[..., Any]


class _Names(type):
    """Class attributes, such as members of an enum, are their own names."""

    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return f"{cls.__name__}.{name}"


class _AnyModule(ModuleType):
    """A submodule or a function: which of them, its first use tells."""

    def __init__(self, name: str, call: Call) -> None:
        super().__init__(name)
        self.__path__: list[str] = []
        self._call = call

    def __getattr__(self, name: str) -> Any:
        value = attribute(self.__name__, name, self._call)
        setattr(self, name, value)
        return value

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        return self._call(*arguments, **settings)


def attribute(owner: str, name: str, call: Call) -> Any:
    """What `owner.name` is: a class where it is written like one."""
    if name.startswith("__"):
        raise AttributeError(f"{owner} has no {name}: it is stood in for here")
    if name[0].isupper():
        return _Names(name, (), {"__init__": lambda self, *arguments, **settings: None})
    return sys.modules.get(f"{owner}.{name}") or _AnyModule(f"{owner}.{name}", call)


class _Submodules(MetaPathFinder, Loader):
    def __init__(self, root: str, call: Call) -> None:
        self._prefix = f"{root}."
        self._call = call

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not name.startswith(self._prefix):
            return None
        return ModuleSpec(name, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _AnyModule(spec.name, self._call)

    def exec_module(self, module: ModuleType) -> None:
        pass


def stand_in(root: str, call: Call) -> Callable[[str], Any]:
    """Make every submodule of `root` importable. Returns the `__getattr__` of `root` itself.

    Args:
        call: what calling any function of it does.
    """
    sys.meta_path.insert(0, _Submodules(root, call))
    return lambda name: attribute(root, name, call)
