"""A configuration as JSON holds it."""

from __future__ import annotations

import dataclasses
from enum import Enum
from typing import Any


def as_plain(config: Any) -> dict[str, Any]:
    """The fields of a dataclass and of those in it; an enum is its value."""
    return _plain(dataclasses.asdict(config))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value.value if isinstance(value, Enum) else value
