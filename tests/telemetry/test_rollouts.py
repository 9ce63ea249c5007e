from __future__ import annotations

import dataclasses
import json

from megatron_r1.telemetry.rollouts import pass_counts, write_pass_counts, write_rollouts
from megatron_r1.types import FinishReason, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup


def make_group(prompt_id, texts, draw=0):
    prompt = Prompt(
        id=prompt_id,
        draw=draw,
        question="2 + 2 =",
        text="User: 2 + 2 =",
        token_ids=(1, 2, 3),
        answer="4",
        grader="exact",
    )
    rollouts = tuple(
        Rollout(
            sample=g,
            token_ids=(7, 8, 9),
            logprobs=(-0.1, -0.2, -0.3),
            finish_reason=FinishReason.stop,
            weight_version=12,
            text=text,
        )
        for g, text in enumerate(texts)
    )
    reward = Reward(
        total=0.5,
        parts={"accuracy": 1.0},
        reasons={"accuracy": "equal to 4"},
        weights={"accuracy": 0.5},
    )
    return ScoredGroup(group=RolloutGroup(prompt, rollouts), rewards=(reward,) * len(texts))


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_a_line_says_what_was_asked_answered_and_earned(tmp_path):
    path = write_rollouts(tmp_path, 123, [make_group("sum/1", ["4"])], limit=-1)
    assert path == tmp_path / "rollouts" / "step_000123.jsonl"
    assert read_lines(path) == [
        {
            "prompt_id": "sum/1",
            "sample": 0,
            "question": "2 + 2 =",
            "answer": "4",
            "response": "4",
            "reward": 0.5,
            "parts": {"accuracy": 1.0},
            "weights": {"accuracy": 0.5},
            "reasons": {"accuracy": "equal to 4"},
            "finish_reason": "stop",
            "tokens": 3,
            "weight_version": 12,
            "version_spans": [[12, 0, 3]],
        }
    ]


def test_the_limit_counts_groups_and_keeps_them_whole(tmp_path):
    groups = [make_group(f"sum/{p}", ["4", "5"]) for p in range(3)]
    first_two = write_rollouts(tmp_path, 1, groups, limit=2)
    assert [(line["prompt_id"], line["sample"]) for line in read_lines(first_two)] == [
        ("sum/0", 0),
        ("sum/0", 1),
        ("sum/1", 0),
        ("sum/1", 1),
    ]
    assert len(read_lines(write_rollouts(tmp_path, 2, groups, limit=-1))) == 6
    assert write_rollouts(tmp_path, 3, groups, limit=0) is None


def test_any_text_survives(tmp_path):
    texts = ["line\nbreak", "中文", "separator\u2028", "half a pair \ud83d", "\x00"]
    path = write_rollouts(tmp_path, 1, [make_group("sum/1", texts)], limit=-1)
    assert [line["response"] for line in read_lines(path)] == texts
    assert "中文" in path.read_text(encoding="utf-8")


def test_pass_counts_are_those_of_every_group_and_a_phase_that_is_made_again_is_one(tmp_path):
    """Two replicas' shares; the third group is of a prompt that no rule grades."""
    right, wrong = make_group("a", ["4"] * 3, draw=2), make_group("b", ["4", "5"], draw=1)
    wrong = dataclasses.replace(
        wrong, rewards=(wrong.rewards[0], Reward(total=0.0, parts={"accuracy": 0.0}, reasons={}))
    )
    ungraded = make_group("c", ["hello"], draw=3)
    ungraded = dataclasses.replace(
        ungraded, rewards=(Reward(total=0.0, parts={"helpful": 0.1}, reasons={}),)
    )
    shares = [pass_counts([right, ungraded]), pass_counts([wrong])]
    for _ in range(2):
        path = write_pass_counts(tmp_path, 7, shares)
    assert path == tmp_path / "pass_counts" / "step_000007.jsonl"
    assert read_lines(path) == [
        {"prompt_id": "b", "samples": 2, "correct": 1},
        {"prompt_id": "a", "samples": 3, "correct": 3},
    ]
    assert write_pass_counts(tmp_path, 8, [pass_counts([ungraded])]) is None
