"""What differs between a saved configuration, perhaps an earlier program's, and this one."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from megatron_r1.config.run import RunConfig


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig
) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: name -> (before, now). One that is absent counts as None.

    One that was not there before came with a later version of the program. Its default does what
    had been done, or differs from it by rounding alone.

    Args:
        now: some or all of `settings_of(config)`.
    """
    added = {name: _default(config, name) for name in now if name not in before}
    before = {**before, **added}
    return {
        name: (before.get(name), now.get(name))
        for name in sorted(before)
        if before.get(name) != now.get(name)
    }


def _default(config: RunConfig, setting: str) -> Any:
    """A setting's default in the schema, its owners' word for it first; None where the schema has
    none, as for entries of a dict."""
    owner: Any = config
    default: Any = None
    for name in setting.split("."):
        if dataclasses.is_dataclass(owner):
            # A default of another class is another choice of component.
            known = default if type(default) is type(owner) else None
            default = getattr(known, name) if known is not None else _of_field(owner, name)
            owner = getattr(owner, name, None)
        elif isinstance(owner, dict):
            default = default.get(name) if isinstance(default, dict) else None
            owner = owner.get(name)
        else:
            return None
    plain = OmegaConf.create({"value": default})
    return OmegaConf.to_container(plain, enum_to_str=True)["value"]


def _of_field(owner: Any, name: str) -> Any:
    for field in dataclasses.fields(owner):
        if field.name == name and field.default_factory is not dataclasses.MISSING:
            return field.default_factory()
        if field.name == name and field.default is not dataclasses.MISSING:
            return field.default
    return None
