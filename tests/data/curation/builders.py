"""Examples for the tests of single steps."""

from __future__ import annotations

from pathlib import Path

from megatron_r1.data.curation.examples import Example, example_of
from megatron_r1.data.records import Line


def example(question: str, number: int = 1, **keys: object) -> Example:
    """What line `number` of a.jsonl would hold."""
    record = {"question": question, "answer": "1", **keys}
    return example_of(Line(Path("a.jsonl"), number, record))
