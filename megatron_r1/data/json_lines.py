"""One line of JSON: the object that it holds, and the texts in it."""

from __future__ import annotations

import json
from typing import Any


def text_of(record: dict[str, Any], key: str) -> str:
    """A text that must be there and say something; raises ValueError where it does not."""
    if key not in record:
        raise ValueError(f"key {key!r} is missing")
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a string, got {type(value).__name__} {value!r}")
    if not value.strip():
        raise ValueError(f"{key!r} is empty")
    if holds_half_a_pair(value):
        raise ValueError(f"{key!r} holds half of a surrogate pair, which is no character")
    return value


def holds_half_a_pair(text: str) -> bool:
    """Whether a text holds half of a surrogate pair, which is no character."""
    return any("\ud800" <= char <= "\udfff" for char in text)


def decode(line: bytes, what: str = "record") -> dict[str, Any]:
    """The object that a line holds; raises ValueError with what is wrong."""
    try:
        record = json.loads(line.decode("utf-8-sig").rstrip())
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 at byte {error.start + 1} of the line") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError(f"not a {what}: JSON nested too deeply to be read") from error
    if not isinstance(record, dict):
        raise ValueError(f"expected an object, got {type(record).__name__}")
    return record
