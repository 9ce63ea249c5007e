"""Counting scored groups, by hand."""

from __future__ import annotations

import time

import pytest

from megatron_r1.config.reward import RewardConfig
from megatron_r1.evaluation.runner import EvalResult, outcome_of, summarise
from megatron_r1.rewards.scorer import RewardScorer
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
    first, second = map(outcome_of, GROUPS)
    # An accuracy below 1 is not right.
    assert (first.is_right, second.num_right) == ((True, False, True, False), 0)
    assert (first.num_samples, first.tokens, first.is_truncated[3]) == (4, (2, 4, 6, 8), True)
    # 2 of 4: one draw of C(4, 2) = 6 pairs has none.
    assert [first.pass_at(k) for k in (1, 2, 4)] == [0.5, 1 - 1 / 6, 1.0]
    assert summarise([first, second]) == EvalResult(
        pass_at_1=0.25,
        pass_at_n=0.5,
        format=0.5,
        problems=2,
        samples=4,
        response_tokens_mean=5.0,
        truncated_frac=0.375,
    )


def test_votes_are_counted_by_value_in_a_worker():
    """Four answers: 3 and 3.0 are right; 1/2, 0.5 and 5e-1 are wrong, and one."""
    responses = [f"<answer>{text}</answer>" for text in ("3", "3.0", "1/2", "0.5", "5e-1")]
    prompt = Prompt("p", 0, "", "", (1, 2), "3", "math")
    rollouts = tuple(
        Rollout(n, (3,), (-1.0,), FinishReason.stop, 0, text) for n, text in enumerate(responses)
    )
    with RewardScorer(RewardConfig(weights={"accuracy": 1.0, "format": 1.0})) as scorer:
        (scored,) = scorer.score([RolloutGroup(prompt=prompt, rollouts=rollouts)])
        found = outcome_of(scored, scorer)
        with pytest.raises(TimeoutError):
            scorer.call(time.sleep, 60, timeout_s=0.2)
        assert scorer.call(len, "a worker again", timeout_s=10) == 14
    assert (found.num_right, found.consensus, found.compared_as_text) == (2, 0.0, False)
    assert outcome_of(scored).consensus is None


def test_a_choice_is_one_vote_however_it_is_written():
    """B is right with two votes; C has four, written in four ways."""
    responses = ["B", "b)", "C", "(C)", "C) tin", "tin", "I cannot say", None]
    texts = ["no tags" if r is None else f"<answer>{r}</answer>" for r in responses]
    data = {"choices": ["iron", "lead", "tin"]}
    prompt = Prompt("p", 0, "", "", (1, 2), "B", "choice", grader_data=data)
    rollouts = tuple(
        Rollout(n, (3,), (-1.0,), FinishReason.stop, 0, text) for n, text in enumerate(texts)
    )
    with RewardScorer(RewardConfig(weights={"accuracy": 1.0, "format": 1.0})) as scorer:
        (scored,) = scorer.score([RolloutGroup(prompt=prompt, rollouts=rollouts)])
        found = outcome_of(scored, scorer)
    assert (found.num_right, found.consensus) == (2, 0.0)


def test_the_written_result_names_its_k():
    written = summarise(list(map(outcome_of, GROUPS))).to_json()
    assert (written["pass@1"], written["pass@4"], written["truncated_frac"]) == (0.25, 0.5, 0.375)
