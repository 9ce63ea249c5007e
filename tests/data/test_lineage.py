"""Where an example comes from survives every file that it passes through."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from megatron_r1.data.curation.examples import example_of
from megatron_r1.data.lineage import Lineage
from megatron_r1.data.records import Line

HERE = Path("data/b.jsonl.gz")


def test_a_prompt_comes_from_its_line():
    found = example_of(Line(HERE, 7, {"question": "1 + 1", "answer": "2"}))
    assert found.id == "b/7"
    assert found.lineage == Lineage(prompt_id="b/7", source="data/b.jsonl.gz", line=7)


def test_a_line_of_rollouts_knows_its_prompt_sample_version_and_verdicts():
    record = {"prompt_id": "sums/3", "sample": 2, "weight_version": 40, "question": "1 + 1"}
    found = example_of(Line(HERE, 1, {**record, "response": "2", "parts": {"accuracy": 1.0}}))
    assert found.id == "sums/3/40/2"
    expected = Lineage("sums/3", str(HERE), 1, None, 40, None, 2, {"accuracy": 1.0})
    assert found.lineage == expected


def test_lineage_is_written_and_read_back_as_it_was():
    made = Lineage(
        prompt_id="sums/3",
        model="runs/zero",
        model_version=40,
        seed=3,
        sample=5,
        verdicts={"accuracy": 1.0, "format": 1.0},
    )
    record = {"question": "1 + 1", "response": "2", "level": 4, "lineage": made.to_record()}
    found = example_of(Line(HERE, 9, record))
    assert found.lineage == dataclasses.replace(made, source=str(HERE), line=9)
    again = example_of(Line(Path("c.jsonl"), 1, found.to_record()))
    assert (again.lineage, again.record["level"], again.id) == (found.lineage, 4, found.id)


@pytest.mark.parametrize(
    ("lineage", "message"),
    [
        ([], "'lineage' must be an object, got list"),
        ({"modle": "x"}, "unknown key 'modle'"),
        ({"seed": "1"}, "'lineage.seed' must be int, got str"),
        ({"seed": True}, "'lineage.seed' must be int, got bool"),
    ],
)
def test_a_lineage_that_cannot_be_read(lineage, message):
    record = {"question": "1 + 1", "answer": "2", "lineage": lineage}
    with pytest.raises(ValueError, match=message):
        example_of(Line(HERE, 1, record))
