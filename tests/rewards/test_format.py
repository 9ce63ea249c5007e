"""One thought, one answer, nothing else."""

from __future__ import annotations

import pytest

from megatron_r1.rewards.format import tag_format
from tests.rewards.builders import prompt_of, rollout_of


@pytest.mark.parametrize(
    "text",
    [
        "<think>1+2=3</think><answer>3</answer>",
        " <think>\n1+2=3\n</think>\n\n<answer> 3 </answer>\n",
        "<think></think><answer></answer>",
        "<think>a < b > c & <b>d</b></think><answer>x</answer>",
    ],
)
def test_well_formed(text):
    assert tag_format(prompt_of(), rollout_of(text)) == (1.0, "one thought, one answer")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "0 <think> tags, expected 1"),
        ("<answer>3</answer>", "0 <think> tags"),
        ("<think>x</think>3", "0 <answer> tags"),
        ("<think>x<answer>3</answer>", "0 </think> tags"),
        ("<think>x</think><answer>3", "0 </answer> tags"),
        ("<think>x</think><think>y</think><answer>3</answer>", "2 <think> tags"),
        ("<think>x</think><answer>3</answer><answer>4</answer>", "2 <answer> tags"),
        ("<think>x</think><answer>3</answer></answer>", "2 </answer> tags"),
        ("<answer>3</answer><think>x</think>", "out of order"),
        ("<think>x<answer>3</answer></think>", "out of order"),
        ("<think>x</think><answer>3</answer> done", "outside the blocks"),
        ("Well: <think>x</think><answer>3</answer>", "outside the blocks"),
        ("<think>x</think> so <answer>3</answer>", "outside the blocks"),
        ("</think>x<think></answer>3<answer>", "out of order"),
        ("<Think>x</Think><answer>3</answer>", "0 <think> tags"),
    ],
)
def test_malformed_with_the_reason(text, reason):
    value, given = tag_format(prompt_of(), rollout_of(text))
    assert value == 0.0
    assert reason in given
