"""The paper's template, to the letter."""

from __future__ import annotations

import pytest

from megatron_r1.data.templates import render
from megatron_r1.errors import ConfigError


def test_r1_zero_is_table_1_of_the_paper():
    assert render("r1_zero", "1 + 1 =") == (
        "A conversation between User and Assistant. The user asks a question, and the Assistant "
        "solves it. The assistant first thinks about the reasoning process in the mind and then "
        "provides the user with the answer. The reasoning process and answer are enclosed within "
        "<think> </think> and <answer> </answer> tags, respectively, i.e., "
        "<think> reasoning process here </think> <answer> answer here </answer>. "
        "User: 1 + 1 =. Assistant:"
    )


def test_a_question_with_braces_stays_as_it_is():
    assert render("plain", r"\frac{1}{2} {question}") == r"\frac{1}{2} {question}"


def test_an_unknown_template_lists_the_known_ones():
    with pytest.raises(ConfigError, match="'r1_one' is unknown. Choose one of r1_zero, plain"):
        render("r1_one", "1 + 1 =")
