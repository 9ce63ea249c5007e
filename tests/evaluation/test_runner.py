"""Counting scored groups, by hand."""

from __future__ import annotations

from megatron_r1.evaluation.runner import EvalResult, count
from megatron_r1.types import FinishReason, Prompt, Reward, Rollout, RolloutGroup, ScoredGroup


def scored_group(accuracy, format, num_tokens, truncated) -> ScoredGroup:
    """One entry of each list per rollout."""
    prompt = Prompt("p", 0, "", "", (1, 2), "", "exact")
    rollouts = tuple(
        Rollout(
            sample=sample,
            token_ids=(3,) * num_tokens[sample],
            logprobs=(-1.0,) * num_tokens[sample],
            finish_reason=FinishReason.length if truncated[sample] else FinishReason.stop,
            weight_version=0,
            text="",
        )
        for sample in range(len(accuracy))
    )
    rewards = tuple(
        Reward(total=a + f, parts={"accuracy": a, "format": f}, reasons={})
        for a, f in zip(accuracy, format, strict=True)
    )
    return ScoredGroup(group=RolloutGroup(prompt=prompt, rollouts=rollouts), rewards=rewards)


GROUPS = [
    scored_group([1.0, 0.0, 1.0, 0.0], [1.0, 1.0, 1.0, 0.0], [2, 4, 6, 8], [0, 0, 0, 1]),
    scored_group([0.0, 0.5, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0], [8, 8, 2, 2], [1, 1, 0, 0]),
]


def test_counts_of_two_problems_with_four_samples():
    assert count(GROUPS, num_samples=4) == {
        # 2 of 4 and 0 of 4: an accuracy below 1 is not correct.
        "pass@1": (0.5, 2.0),
        # One of the two problems was solved by some sample.
        "pass@n": (1.0, 2.0),
        "format": (4.0, 8.0),
        "tokens": (40.0, 8.0),
        "truncated": (3.0, 8.0),
    }


def test_a_replica_without_problems_adds_nothing():
    assert count([], num_samples=4) == {
        name: (0.0, 0.0) for name in ("pass@1", "pass@n", "format", "tokens", "truncated")
    }


def test_the_written_result_names_its_k():
    result = EvalResult(
        pass_at_1=0.25,
        pass_at_n=0.5,
        format=0.5,
        problems=2,
        samples=4,
        response_tokens_mean=5.0,
        truncated_frac=0.375,
    )
    written = result.to_json()
    assert (written["pass@1"], written["pass@4"], written["truncated_frac"]) == (0.25, 0.5, 0.375)
