"""Samples: prompts with a response to imitate, such as a teacher's, as a JSONL file holds them.

    {"prompt": "1 + 1 =", "response": "<think>1 and 1 are 2</think><answer>2</answer>"}

``prompt``, or ``question`` as in docs/data.md, is rendered by `data.template` when it is used;
``response`` has no end-of-sequence token. Other keys are left alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from megatron_r1.data.json_lines import text_of
from megatron_r1.data.lineage import lineage_fields
from megatron_r1.data.records import parse_records
from megatron_r1.errors import DataError


@dataclass(frozen=True)
class Sample:
    """A prompt with the response to imitate."""

    prompt: str
    """The question, before its template."""
    response: str
    line: int = field(default=0, compare=False)
    """Of its file, from 1; 0 where it comes from none."""
    lineage: Mapping[str, Any] = field(default_factory=dict, compare=False)
    """What is known of it, by the keys of `data/lineage.py`."""


def read_samples(path: str | Path, *, bad_lines: list[DataError] | None = None) -> list[Sample]:
    """The samples of a file, in its order. `bad_lines` as in `parse_records`.

    Raises:
        DataError: the file is missing or holds no sample, or a line is unusable: ``file:line``,
            what is wrong, and how the line starts.
    """
    return parse_records(
        path,
        lambda record, number: replace(sample_of(record), line=number),
        what="sample",
        way_out="Name a JSONL or Parquet file with prompt and response",
        bad_lines=bad_lines,
    )


def sample_of(record: dict[str, Any]) -> Sample:
    """One record, checked; raises ValueError with what is wrong."""
    key = "question" if "question" in record and "prompt" not in record else "prompt"
    return Sample(
        text_of(record, key),
        text_of(record, "response"),
        lineage=lineage_fields(record["lineage"]) if "lineage" in record else {},
    )
