"""Pass rates out of a run's own rollout files."""

from __future__ import annotations

import json

import pytest

from megatron_r1.config.curation import DifficultyConfig
from megatron_r1.data.curation.difficulty import Difficulty, count_rollouts
from megatron_r1.errors import DataError
from tests.data.curation.builders import example


@pytest.fixture
def rollouts(tmp_path) -> str:
    """16 samples of each prompt: 0, 1, 15 and 16 of them right, over two steps of one file."""
    records = [
        {"prompt_id": f"p{right}", "parts": {"accuracy": float(sample < right), "format": 1.0}}
        for right in (0, 1, 15, 16)
        for sample in range(16)
    ]
    path = tmp_path / "step_000001.jsonl"
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def test_counts(rollouts):
    counts = {"p0": (0, 16), "p1": (1, 16), "p15": (15, 16), "p16": (16, 16)}
    assert count_rollouts([rollouts]) == counts
    assert count_rollouts([rollouts, rollouts])["p1"] == (2, 32)


def test_groups_of_equal_rewards_go(rollouts):
    step = Difficulty(DifficultyConfig(rollouts=[rollouts]))
    reasons = {name: step.check(example("q", id=name))[1] for name in ("p0", "p1", "p15", "p16")}
    assert reasons == {
        "p0": "too hard: 0 of 16 samples are right",
        "p1": "",
        "p15": "",
        "p16": "too easy: 16 of 16 samples are right",
    }


def test_the_rate_becomes_a_verdict_and_an_unknown_one_is_no_rate(rollouts):
    step = Difficulty(DifficultyConfig(rollouts=[rollouts], min_samples=16))
    kept, _ = step.check(example("q", id="p15"))
    assert kept.lineage.verdicts == {"pass_rate": 0.9375}
    assert step.check(example("q", id="new"))[1] == "sampled 0 times, fewer than 16"


def test_a_file_of_something_else_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt_id": "p", "parts": {"format": 1.0}}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:1: not a rollout"):
        count_rollouts([str(path)])
