"""Answer checking against the labels of `answers.tsv`, on the workers that score a run."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_r1.config.reward import RewardConfig
from megatron_r1.rewards.registry import RULES
from megatron_r1.rewards.scorer import RewardScorer
from tests.rewards.answer_cases import AnswerCase, read_cases
from tests.rewards.builders import group_of, prompt_of
from tests.rewards.rules_for_tests import timed_accuracy

KNOWN_DISAGREEMENTS = {
    # sympy keeps 2**0.5 a float and sqrt(2) a root.
    (r"\sqrt{2}", "<answer>2^{0.5}</answer>"),
    # A lone i is a real variable to math-verify.
    ("-1", "<answer>i^2</answer>"),
    # What is counted is left alone: students are people, too.
    ("5 apples", "<answer>5 coins</answer>"),
}


@pytest.fixture(scope="module")
def judged() -> list[tuple[AnswerCase, bool, float, str]]:
    """Each case with its verdict, the worker's CPU seconds and the reason."""
    cases = read_cases()
    groups = [
        dataclasses.replace(
            group_of(prompt_of(case.reference, "math"), case.response),
        )
        for case in cases
    ]
    RULES["timed"] = timed_accuracy
    try:
        with RewardScorer(RewardConfig(weights={"timed": 1.0}, timeout_s=120.0)) as scorer:
            scorer.score(groups[:1])  # imports math-verify
            scored = scorer.score(groups)
    finally:
        del RULES["timed"]
    rewards = [group.rewards[0] for group in scored]
    late = [
        (case.reference, case.response[:60])
        for case, reward in zip(cases, rewards, strict=True)
        if reward.reasons["timed"] == "timeout"
    ]
    assert late == [], "these cases took longer than the scorer allows"
    return [
        (case, reward.total >= 1.0, *_seconds_and_reason(reward.reasons["timed"]))
        for case, reward in zip(cases, rewards, strict=True)
    ]


def _seconds_and_reason(text: str) -> tuple[float, str]:
    seconds, _, reason = text.partition(" ")
    return float(seconds), reason


def test_the_labels_are_many_and_of_every_kind(judged):
    kinds = {case.kind for case, *_ in judged}
    assert len(judged) >= 490
    assert kinds >= {"fraction", "radical", "set", "interval", "unit", "percent", "boxes", "huge"}
    # Neither "always right" nor "always wrong" would agree with 0.65 of them.
    assert 0.35 < sum(case.right for case, *_ in judged) / len(judged) < 0.65


def test_verdicts_agree_with_the_labels(judged):
    disagreements = {
        (case.reference, case.response) for case, right, *_ in judged if right is not case.right
    }
    assert disagreements == KNOWN_DISAGREEMENTS
    assert 1 - len(disagreements) / len(judged) >= 0.98


def test_no_case_takes_over_five_seconds_of_cpu(judged):
    # Wall time depends on who else works on the machine.
    slow = [(case.response[:60], cpu_s) for case, _, cpu_s, _ in judged if cpu_s > 5]
    assert slow == []
