"""Preferences: a better and a worse response to one prompt, as a file of any format holds them.

    {"prompt": "Why is the sky blue?", "chosen": "Because ...", "rejected": "It is not.",
     "margin": 1.5, "id": "sky"}

``prompt`` is the question, rendered by `data.template` when it is used; ``chosen`` and ``rejected``
are responses, which may begin with a space and have no end-of-sequence token. ``margin`` and ``id``
may be missing, and other keys are left alone. DPO and reward models learn from the same files, and
`rewards/pairs.py` builds them from a judge's verdicts.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from megatron_r1.data.json_lines import text_of
from megatron_r1.data.records import line_id, parse_records
from megatron_r1.errors import DataError
from megatron_r1.telemetry.files import replace_file


@dataclass(frozen=True)
class PreferencePair:
    """A prompt with a better and a worse response."""

    prompt: str
    """The question, before its template."""
    chosen: str
    rejected: str
    margin: float | None = None
    """By how much the chosen one is better, where somebody has said so; at least 0."""
    id: str = ""


def read_preferences(
    path: str | Path,
    *,
    bad_lines: list[DataError] | None = None,
    part_read: Callable[[str], str] = str,
) -> list[PreferencePair]:
    """The pairs of a file, in its order. Without an id a pair is named after file and line.

    Args:
        bad_lines: as in `parse_records`.
        part_read: what of a response is learned from; a pair that differs elsewhere alone is
            refused.
    Raises:
        DataError: the file is missing or holds no pair, or a line is unusable: ``file:line``, what
            is wrong, and how the line starts.
    """
    return parse_records(
        path,
        lambda record, number: _to_pair(record, part_read, default_id=line_id(path, number)),
        what="pair",
        way_out="Name a JSONL or Parquet file with prompt, chosen and rejected",
        bad_lines=bad_lines,
    )


def write_preferences(path: str | Path, pairs: Sequence[PreferencePair]) -> None:
    """A file that `read_preferences` reads back."""
    with replace_file(Path(path)) as draft:
        draft.write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))


def _to_pair(
    record: dict[str, Any], part_read: Callable[[str], str], *, default_id: str
) -> PreferencePair:
    """One line; raises ValueError with what is wrong."""
    chosen, rejected = text_of(record, "chosen"), text_of(record, "rejected")
    if chosen == rejected:
        raise ValueError("'chosen' and 'rejected' are the same, which prefers neither")
    if part_read(chosen) == part_read(rejected):
        raise ValueError(
            f"'chosen' and 'rejected' have the same summary, {part_read(chosen)[:40]!r}, and "
            "nothing else of them is read here: take the line out"
        )
    return PreferencePair(
        prompt=text_of(record, "prompt"),
        chosen=chosen,
        rejected=rejected,
        margin=_margin(record.get("margin")),
        id=text_of(record, "id") if record.get("id") else default_id,
    )


def _margin(value: Any) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e6:
        raise ValueError(f"'margin' must be a number from 0 to a million, got {value!r}")
    return float(value)
