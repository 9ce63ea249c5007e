"""Files of one JSON object a line: read whole, each fault named with its file and line."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from megatron_r1.errors import DataError

T = TypeVar("T")


def read_records(
    path: str | Path,
    parse: Callable[[dict[str, Any], int], T],
    *,
    what: str,
    way_out: str,
    max_lines: int | None = None,
) -> list[T]:
    """`parse` each object of a file, given its line's number; empty lines are passed over.

    Args:
        parse: raises ValueError with what is wrong with an object.
        what: one record's name in messages, e.g. ``prompt``.
        way_out: said of a file that cannot be opened.
        max_lines: stops there; None reads the whole file.
    Raises:
        DataError: the file is missing or empty, or a line is unusable: ``file:line``, what is
            wrong, and how the line starts.
    """
    try:
        with open(path, "rb") as file:
            lines = [line.rstrip(b"\n") for line in itertools.islice(file, max_lines)]
    except OSError as error:
        raise DataError(f"{what} file {path}: {error.strerror}. {way_out}") from error
    records = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            records.append(parse(decode(line, what), number))
        except ValueError as error:
            start = line[:60].decode("utf-8", errors="backslashreplace")
            raise DataError(f"{path}:{number}: {error}. The line starts {start!r}") from error
    if not records:
        raise DataError(f"{what} file {path} holds no {what}. Write one JSON object a line")
    return records


def text_of(record: dict[str, Any], key: str) -> str:
    """A text that must be there and say something; raises ValueError where it does not."""
    if key not in record:
        raise ValueError(f"key {key!r} is missing")
    value = record[key]
    if not isinstance(value, str):
        raise ValueError(f"{key!r} must be a string, got {type(value).__name__} {value!r}")
    if not value.strip():
        raise ValueError(f"{key!r} is empty")
    if any("\ud800" <= char <= "\udfff" for char in value):
        raise ValueError(f"{key!r} holds half of a surrogate pair, which is no character")
    return value


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
