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


def test_pass_counts_of_all_groups_stand_for_the_few_whose_texts_were_written(tmp_path):
    """However the files are named: the texts, the counts or both."""
    texts, counts = (tmp_path / f / "step_000001.jsonl" for f in ("rollouts", "pass_counts"))
    alone = tmp_path / "rollouts" / "step_000003.jsonl"
    for path in (texts, counts):
        path.parent.mkdir()
    for path in (texts, alone):
        path.write_text('{"prompt_id": "p", "parts": {"accuracy": 1.0}}\n')
    records = [("p", 16, 15), ("q", 16, 4), ("q", 16, 3)]
    counts.write_text(
        "\n".join(json.dumps({"prompt_id": p, "samples": s, "correct": c}) for p, s, c in records)
    )
    expected = {"p": (15, 16), "q": (7, 32)}
    for named in ([counts], [texts], [texts, counts]):
        assert count_rollouts([str(path) for path in named]) == expected
    assert count_rollouts([str(texts), str(alone)])["p"] == (16, 17)
    for bad in (
        {"samples": 2, "correct": 3},
        {"samples": 0, "correct": 0},
        {"samples": 2, "correct": True},
    ):
        counts.write_text(json.dumps({"prompt_id": "p", **bad}))
        with pytest.raises(DataError, match=r"pass_counts/step_000001\.jsonl:1: not a rollout"):
            count_rollouts([str(counts)])


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
