"""Right or wrong, by each grader, and the traps of each."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_r1.data.gym_tasks import generate_problems
from megatron_r1.errors import DataError
from megatron_r1.rewards.accuracy import accuracy
from megatron_r1.types import FinishReason
from tests.rewards.builders import prompt_of, rollout_of


def judged(gold: str, answer: str, grader: str) -> float:
    return accuracy(prompt_of(gold, grader), rollout_of(f"<answer>{answer}</answer>"))[0]


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [
        (r"\frac{1}{2}", "0.5", 1),
        ("1/2", r"\frac{2}{4}", 1),
        ("1/3", "0.33", 0),
        ("-3", "-3", 1),
        ("-3", "3", 0),
        ("3", "x = 3", 1),
        ("$5$", "5", 1),
        ("1,000", "1000", 1),
        (r"\{1, 2\}", r"\{2, 1\}", 1),
        ("(1, 2)", "(2, 1)", 0),
        ("x^2 + 2x + 1", "(x+1)^2", 1),
        (r"\text{B}", "B", 1),
        ("7", "7.", 1),
        (r"The answer is \boxed{4}", "4", 1),
        ("3", "3, 4", 0),
        ("3", "3$ or $4", 0),
        ("3", "3 or 4", 0),
        ("3", "", 0),
        ("3", "} {", 0),
    ],
)
def test_math(gold, answer, value):
    assert judged(gold, answer, "math") == value


def test_the_last_of_two_boxes_counts():
    # math-verify itself would read the set {3, 4}.
    prompt = prompt_of("4", "math")
    assert accuracy(prompt, rollout_of(r"\boxed{3}, no: \boxed{4}"))[0] == 1.0
    assert accuracy(prompt, rollout_of(r"\boxed{4}, no: \boxed{3}"))[0] == 0.0


def test_a_reference_that_is_no_mathematics_is_a_broken_grader():
    with pytest.raises(ValueError, match="cannot read the reference answer"):
        judged("", "3", "math")


@pytest.mark.parametrize(
    ("gold", "answer", "value"),
    [("a b", " a \n b ", 1), ("ab", "a b", 0), ("0.5", ".5", 0), ("A", "a", 0)],
)
def test_exact_forgives_white_space_alone(gold, answer, value):
    assert judged(gold, answer, "exact") == value


@pytest.mark.parametrize(
    ("answer", "value"),
    [("3", 1), ("+3.0", 1), ("03", 1), ("-3", 0), ("4", 0), ("three", 0), ("", 0)],
)
def test_chain_sum(answer, value):
    problem = generate_problems("chain_sum", {}, 1)[0]
    entry = {**problem.grader_data["entry"], "answer": "3"}
    prompt = prompt_of("3", "reasoning_gym:chain_sum", entry=entry)
    assert accuracy(prompt, rollout_of(f"<answer>{answer}</answer>"))[0] == value


def test_partial_credit_is_no_credit():
    # countdown gives 0.05 to a well-formed wrong expression.
    problem = generate_problems("countdown", {}, 1)[0]
    prompt = prompt_of(problem.answer, problem.grader, **problem.grader_data)
    value, reason = accuracy(prompt, rollout_of("<answer>1 + 1</answer>"))
    assert value == 0.0
    assert reason == "wrong: '1 + 1' in the last <answer> block (countdown scores 0.05)"
    assert accuracy(prompt, rollout_of(f"<answer>{problem.answer}</answer>"))[0] == 1.0


def test_a_truncated_response_is_judged_by_the_same_rule():
    rollout = dataclasses.replace(rollout_of(r"\boxed{3} and"), finish_reason=FinishReason.length)
    assert accuracy(prompt_of("3"), rollout)[0] == 1.0


def test_no_answer_is_wrong_and_an_unknown_grader_is_the_data_s_fault():
    assert accuracy(prompt_of("3"), rollout_of("3")) == (
        0.0,
        "no box and no complete <answer> block",
    )
    with pytest.raises(DataError, match="prompt p/1 asks for grader 'guess'. Choose math, exact"):
        judged("3", "3", "guess")
