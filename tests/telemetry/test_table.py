from __future__ import annotations

import pytest

from megatron_r1.telemetry.table import render_table


def test_words_are_aligned_to_the_left_and_numbers_to_the_right():
    rows = [["base", "0.19", "-"], ["r1_zero", "12.5%", "+3"]]
    assert render_table(["model", "pass@1", "gain"], rows).split("\n") == [
        "| model   | pass@1 | gain |",
        "|:--------|-------:|-----:|",
        "| base    |   0.19 |    - |",
        "| r1_zero |  12.5% |   +3 |",
    ]


def test_a_column_of_dashes_is_not_numeric():
    assert render_table(["reason"], [["-"]]).split("\n")[1] == "|:-------|"


def test_a_row_with_a_cell_too_few_is_refused():
    with pytest.raises(ValueError, match="1 cells under 2 headings"):
        render_table(["a", "b"], [["1"]])
