"""The table of a pipeline's models, from numbers that a reader can check by hand."""

from __future__ import annotations

import json

from pytest import approx

from megatron_r1.evaluation.intervals import Estimate
from megatron_r1.evaluation.stage_table import stage_table, write_stage_table


def ruled(right: list[float], **form: list[float]) -> dict:
    """A suite that a rule grades, with one number for each problem."""
    value = sum(right) / len(right)
    by_problem = [
        {"id": str(n), "right": share, **{name: values[n] for name, values in form.items()}}
        for n, share in enumerate(right)
    ]
    found = {"value": value, "low": value - 0.1, "high": value + 0.1}
    return {"measures": {"pass@1": found, "pass@4": found}, "by_problem": by_problem}


def judged(value: float) -> dict:
    found = {"value": value, "low": 0.0, "high": 1.0}
    return {"measures": {"judged": found}, "by_problem": [{"id": "0", "verdicts": [value]}]}


RESULTS = {
    "base": {"sums": ruled([0.0, 0.5], format=[0.0, 0.0], readable=[0.0, 0.0])},
    "Zero": {
        "sums": ruled([0.5, 1.0], format=[1.0, 0.5], readable=[0.25, 0.75]),
        "logic": ruled([1.0, 1.0], format=[0.5, 1.0], readable=[0.5, 0.5]),
        "helpfulness": judged(0.75),
    },
}


def test_rows_are_suites_then_form_then_what_a_judge_says():
    table = stage_table(RESULTS)
    assert table.columns == ("base", "Zero")
    assert list(table.rows) == [
        *("sums, pass@1", "logic, pass@1", "format", "readability", "helpfulness")
    ]
    assert table.rows["sums, pass@1"]["base"] == Estimate(0.25, 0.15, 0.35)
    assert table.rows["helpfulness"] == {"Zero": Estimate(0.75, 0.0, 1.0)}


def test_form_is_a_mean_over_the_problems_of_all_ruled_suites():
    rows = stage_table(RESULTS).rows
    # 1, 0.5, 0.5, 1: mean 0.75, standard deviation 0.2887, a half of it is 0.1443 for 4 problems;
    # 1.96 x 0.1443 = 0.2829, and no share exceeds 1.
    zero = rows["format"]["Zero"]
    assert (zero.value, zero.low, zero.high) == (0.75, approx(0.4671, abs=1e-4), 1.0)
    # 0.25, 0.75, 0.5, 0.5: 1.96 x 0.2041 / 2 = 0.2 is less than that of 4 equal outcomes,
    # 3.8415 / (2 x 7.8415) = 0.2449
    readable = rows["readability"]["Zero"]
    assert (readable.value, readable.low) == (0.5, approx(0.2551, abs=1e-4))
    # Two zeros: Wilson's interval does not end at 0. z^2 / (n + z^2) = 3.8415 / 5.8415
    assert rows["format"]["base"].high == approx(0.6576, abs=1e-4)


def test_files_say_the_same(tmp_path):
    table = stage_table(RESULTS)
    write_stage_table(table, tmp_path, title="tiny")
    text = (tmp_path / "table.txt").read_text()
    assert "| logic, pass@1 |                   - | 1.000 (0.900-1.100) |" in text
    assert (tmp_path / "table.md").read_text() == f"# tiny\n\n{text}"
    written = json.loads((tmp_path / "table.json").read_text())
    assert written["rows"]["helpfulness"]["Zero"] == {"value": 0.75, "low": 0.0, "high": 1.0}
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_not_count_stands_below():
    lost = {**judged(0.75), "not_counted": {"samples without a verdict of the judge, left out": 3}}
    table = stage_table({"base": RESULTS["base"], "Zero": {"helpfulness": lost}})
    note = "Zero, helpfulness: 3 samples without a verdict of the judge, left out"
    assert table.markdown().endswith(f"|\n\n- {note}")
    assert table.to_json()["notes"] == [note]
