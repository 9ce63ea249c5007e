"""Stands in for torchvision: images are never read here."""

from __future__ import annotations

from typing import Any

from import_only import stand_in

__version__ = "0.0.0+stand.in"
__path__: list[str] = []


def _refuse(*arguments: Any, **settings: Any) -> Any:
    raise NotImplementedError("torchvision is stood in for here, and has no functions")


__getattr__ = stand_in(__name__, _refuse)
