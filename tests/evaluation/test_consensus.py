"""Votes that are counted by hand."""

from __future__ import annotations

import itertools

import pytest

from megatron_r1.evaluation.consensus import consensus, same_text, same_value

R, W = True, False


@pytest.mark.parametrize(
    ("answers", "is_right", "expected"),
    [
        (["4", "5", "4"], [R, W, R], 1),
        (["5", "4", "5"], [W, R, W], 0),
        # Two answers lead with one vote each, one of them right; then one of three.
        (["4", "5"], [R, W], 1 / 2),
        (["4", "5", "6"], [R, W, W], 1 / 3),
        (["4", "5", "5", "4", "6"], [R, W, W, R, W], 1 / 2),
        # Two wrong answers lead.
        (["5", "5", "6", "6", "4"], [W, W, W, W, R], 0),
        # No answer is no vote.
        ([None, None, "4"], [W, W, R], 1),
        ([None, None], [W, W], 0),
        # Written otherwise, the same answer: $5$ and 5.0 are two votes.
        (["4", "$5$", r"\text{5}"], [R, W, W], 0),
    ],
)
def test_the_leading_answer(answers, is_right, expected):
    assert consensus(answers, is_right, same_text) == pytest.approx(expected)


def test_right_answers_are_one_however_they_are_written():
    answers = ["0.5", r"\frac{1}{2}", "1", "1"]
    assert consensus(answers, [R, R, W, W], same_text) == 0.5
    assert consensus([*answers, "50\\%"], [R, R, W, W, R], same_text) == 1


def test_values_are_compared_where_texts_differ():
    answers = [r"\frac{1}{4}", "0.25", "3", "3", "1/4"]
    is_right = [W, W, R, R, W]
    assert consensus(answers, is_right, same_text) == 1
    assert consensus(answers, is_right, same_value) == 0


def test_the_order_of_samples_does_not_count():
    samples = [("4", R), ("5", W), ("5.0", W), ("1/2", W), (None, W)]
    found = {
        consensus([a for a, _ in order], [r for _, r in order], same_value)
        for order in itertools.permutations(samples)
    }
    assert found == {0.0}
