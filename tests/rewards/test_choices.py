"""Letters, and the ways in which they are written."""

from __future__ import annotations

import pytest

from megatron_r1.rewards.choices import is_choice


@pytest.mark.parametrize(
    ("gold", "answer", "right"),
    [
        ("B", "B", True),
        ("B", "b", True),
        ("B", "(B)", True),
        ("B", "B.", True),
        ("B", "B) 42 km", True),
        ("B", "(b) because 6 x 7", True),
        ("B", "Option B", True),
        ("B", "The answer is B", True),
        ("B", r"\text{B}", True),
        ("B", r"\textbf{(B)}", True),
        ("B", "**B**", True),
        ("B", "C", False),
        ("B", "A, B", False),
        ("B", "ABCD", False),
        ("B", "", False),
        ("B", "42", False),
        ("B", "Banana", False),
        ("B", "not B", False),
        ("A, C", "C, A", True),
        ("A, C", "AC", True),
        ("A, C", "A and C", True),
        ("A, C", "A", False),
        ("A, C", "A, B, C", False),
    ],
)
def test_letters(gold, answer, right):
    assert is_choice(gold, answer) is right


def test_the_text_of_an_option_counts_where_the_options_are_known():
    choices = ["41", "42 km", "43"]
    assert is_choice("B", "42", choices)
    assert not is_choice("B", "43", choices)
    assert not is_choice("B", "B) 43", choices)


def test_a_reference_without_a_letter_is_refused():
    with pytest.raises(ValueError, match="names no option"):
        is_choice("42", "B")
