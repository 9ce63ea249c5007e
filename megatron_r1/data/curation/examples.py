"""One example of a data set: a prompt to sample from, or a prompt with the response to learn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from megatron_r1.data.json_lines import text_of
from megatron_r1.data.jsonl import problem_of
from megatron_r1.data.lineage import Lineage, lineage_of
from megatron_r1.data.records import Line, line_id
from megatron_r1.data.samples import sample_of


@dataclass(frozen=True)
class Example:
    """A record of a file, checked. Keys that are not ours travel along in `record`."""

    record: dict[str, Any]
    where: str
    """``file:line``."""
    id: str
    question: str
    response: str
    """Empty in a set of prompts."""
    dataset: str
    lineage: Lineage

    @property
    def text(self) -> str:
        return f"{self.question}\n{self.response}" if self.response else self.question

    def to_record(self) -> dict[str, Any]:
        """The line that is written: what was read, with id and lineage."""
        return {**self.record, "id": self.id, "lineage": self.lineage.to_record()}


def example_of(line: Line) -> Example:
    """Check a record by the schema of docs/data.md.

    Raises:
        ValueError: what is wrong with it.
    """
    record = line.record
    default_id = line_id(line.path, line.number)
    if "response" in record:
        # What is learned from a response needs no reference answer.
        sample = sample_of(record)
        question, response = sample.prompt, sample.response
        own_id = text_of(record, "id") if "id" in record else _rollout_id(record) or default_id
    else:
        problem = problem_of(record, default_id)
        question, response, own_id = problem.question, "", problem.id
    return Example(
        record=record,
        where=line.where,
        id=own_id,
        question=question,
        response=response,
        dataset=text_of(record, "dataset") if "dataset" in record else "",
        lineage=lineage_of(record, own_id, line),
    )


def _rollout_id(record: dict[str, Any]) -> str:
    """A name for a line of a run's rollouts/, whose prompt was sampled many times."""
    names = [record.get(key) for key in ("prompt_id", "weight_version", "sample")]
    return "" if None in names else "/".join(map(str, names))
