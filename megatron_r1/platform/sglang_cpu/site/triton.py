"""Stands in for triton: kernels can be defined, and launching one fails.

Only what modules call or read while they are imported is here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from import_only import stand_in

__version__ = "3.0.0"
__path__: list[str] = []


def _decorate(*arguments: Any, **settings: Any) -> Any:
    """Every function is a decorator here, with settings or without, and changes nothing."""
    if len(arguments) == 1 and callable(arguments[0]) and not settings:
        return arguments[0]
    return _unchanged


def _unchanged(function: Callable) -> Callable:
    return function


class Config:
    """One choice of an autotuned kernel."""

    def __init__(self, kwargs: dict[str, Any] | None = None, **settings: Any) -> None:
        self.kwargs = kwargs or {}
        self.__dict__ |= {"num_warps": 4, "num_stages": 2, **settings}


def cdiv(dividend: int, divisor: int) -> int:
    return -(-dividend // divisor)


def next_power_of_2(number: int) -> int:
    return 1 << max(number - 1, 0).bit_length()


__getattr__ = stand_in(__name__, _decorate)

import triton.language as language  # noqa: E402  a submodule of the above


class _Constexpr:
    """Annotates a parameter, or wraps a constant."""

    def __init__(self, value: Any = None) -> None:
        self.value = value


language.constexpr = _Constexpr
