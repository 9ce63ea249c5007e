"""Responses labelled safe or unsafe, as a file holds them, in JSONL or Parquet.

    {"prompt": "How do locks work?", "response": "<think>...</think>A lock ...", "safe": true,
     "id": "locks"}

``prompt`` is the question, rendered by `data.template` when it is used; ``response`` is the whole
response, thoughts included, without an end-of-sequence token. ``id`` may be missing, and other keys
are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_r1.data.json_lines import text_of
from megatron_r1.data.records import line_id, parse_records
from megatron_r1.errors import DataError


@dataclass(frozen=True)
class LabelledResponse:
    """A response that somebody has called safe or unsafe."""

    prompt: str
    """The question, before its template."""
    response: str
    safe: bool
    id: str = ""


def read_labelled(
    path: str | Path, *, bad_lines: list[DataError] | None = None
) -> list[LabelledResponse]:
    """The responses of a file, in its order. Without an id one is named after file and line.
    `bad_lines` as in `parse_records`.

    Raises:
        DataError: the file is missing or holds no response, or a line is unusable: ``file:line``,
            what is wrong, and how the line starts.
    """
    return parse_records(
        path,
        lambda record, number: _to_labelled(record, default_id=line_id(path, number)),
        what="response",
        way_out="Name a JSONL or Parquet file with prompt, response and safe",
        bad_lines=bad_lines,
    )


def _to_labelled(record: dict[str, Any], *, default_id: str) -> LabelledResponse:
    """One line; raises ValueError with what is wrong."""
    safe = record.get("safe")
    if not isinstance(safe, bool):
        raise ValueError(f"'safe' must be true or false, got {safe!r}")
    return LabelledResponse(
        prompt=text_of(record, "prompt"),
        response=text_of(record, "response"),
        safe=safe,
        id=text_of(record, "id") if record.get("id") else default_id,
    )
