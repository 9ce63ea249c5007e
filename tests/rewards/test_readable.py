"""What makes a response readable, fault by fault."""

from __future__ import annotations

import pytest

from megatron_r1.config.reward import ReadabilityConfig
from megatron_r1.rewards.readable import fault_of, readable
from megatron_r1.types import FinishReason, Prompt, Rollout

QUESTION = "How many apples are left when three of seven apples are eaten?"
GOOD = (
    "<think>There are seven apples at first, and three of them are eaten, so four are left. Let me "
    "check this: four and three are seven.</think><answer>Four apples are left: 4</answer>"
)
STRICT = ReadabilityConfig(min_summary_words=3, max_paragraph_words=40)


def response(text: str, finish_reason: FinishReason = FinishReason.stop) -> Rollout:
    return Rollout(0, (), (), finish_reason, 0, text)


def prompt(language: str | None = None) -> Prompt:
    return Prompt("p/1", 0, QUESTION, QUESTION, (), "4", "math", language=language)


def test_a_thought_and_a_summary_in_one_language():
    assert readable(prompt(), response(GOOD)) == (1.0, "a thought and a summary")
    assert fault_of(prompt(), response(GOOD), STRICT) == ""


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("Four apples.", "form: not one thought"),
        ("So <think>seven less three</think> four", "form: not one thought"),
        ("<think>a</think><think>b</think> four", "form: not one thought"),
        ("<think> </think><answer>four</answer>", "form: no thought"),
        ("<think>seven less three is four</think><answer></answer>", "form: no summary"),
        ("<think>seven less three is four</think><answer>4</answer>", "form: a summary of 1 words"),
        (GOOD.replace("so four are left", "所以剩下四个苹果我们再检查一遍"), "mixed languages"),
        (GOOD.replace("Let me", "They are eaten, so four are left. " * 9), "repetition"),
        (GOOD.replace("Let me", "```print(7 - 3)``` Let me"), "code block"),
        (GOOD.replace("</think>", " " + "It is as plain as day and needs no more proof than a look "
         "at the table where the bowl stands, from which my sister took what she wanted. </think>"),
         "paragraph of"),
    ],
)  # fmt: skip
def test_faults(text, fault):
    assert fault_of(prompt("en"), response(text), STRICT).startswith(fault)


def test_a_truncated_response_is_not_readable():
    assert readable(prompt(), response(GOOD, FinishReason.length)) == (0.0, "form: truncated")
