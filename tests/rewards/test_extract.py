"""Where the final answer is."""

from __future__ import annotations

import time

import pytest

from megatron_r1.rewards.extract import extract_answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{3} then \boxed{4}", "4"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{-7}}", "-7"),
        (r"\boxed{\left\{1, 2\right.}", r"\left\{1, 2\right."),
        (r"\boxed{ 5 }", "5"),
        (r"\boxed{3} and \boxed{4", "3"),
        (r"<answer>4</answer> \boxed{3}", "3"),
        ("<answer>3</answer> <answer>4</answer>", "4"),
        ("<answer>3</answer> <answer>4", "3"),
        ("<answer>3</answer></answer>", "3"),
        ("<answer><answer>3</answer>", "3"),
        ("<answer>\n -3 \n</answer>", "-3"),
        ("<answer></answer>", ""),
        (r"\boxed{3 <answer>4</answer>", "4"),
    ],
)
def test_the_last_complete_box_wins_then_the_last_block(text, answer):
    assert extract_answer(text)[0] == answer


@pytest.mark.parametrize(
    "text", ["", "3", "<answer>3", "3</answer>", "</answer><answer>3", r"\boxed{3", r"\boxed3"]
)
def test_without_a_box_or_a_block_there_is_no_answer(text):
    assert extract_answer(text) == (None, "no box and no complete <answer> block")


def test_the_search_is_linear_in_the_length():
    # Half a million characters: a quadratic search would not come back.
    assert extract_answer("<answer>" * 30_000 + "</answer>" * 30_000)[0] == ""
    assert extract_answer(r"\boxed" * 80_000)[0] is None


def test_boxes_that_never_close_take_no_longer_than_their_length():
    started_s = time.process_time()
    assert extract_answer("\\boxed{" * 50_000) == (None, "no box and no complete <answer> block")
    assert time.process_time() - started_s < 2
