"""`tools/bench/fp8_loss.py` says which run is not as it must be."""

from __future__ import annotations

import math
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools/bench/fp8_loss.py"
REVERSED = "bf16, documents in reverse"


@pytest.fixture(scope="module")
def bench():
    return runpy.run_path(str(BENCH))


def test_differences_are_in_percent_of_the_first_run(bench):
    # 40 steps. All: 2.05 beside 2 is +2.5%; the last quarter: 2.2 is +10%; the farthest window is
    # the last: (10 * 2 + 10 * 2.2) / 20 = 2.1, +5%.
    found = bench["compare"]([2.0] * 30 + [2.2] * 10, [2.0] * 40)
    assert found == pytest.approx([2.5, 10.0, 5.0])
    losses = {"bf16": {7: [2.0] * 20, 8: [4.0] * 20}, "fp8": {7: [2.0] * 20, 8: [3.8] * 20}}
    differences = bench["differences_of"](losses, "bf16")
    assert differences == {"fp8": {7: [0.0] * 3, 8: pytest.approx([-5.0] * 3)}}


def test_the_table_has_means_over_seeds_and_the_farthest_seed(bench):
    # The mean of 3, -1 and 1 is 1; their standard deviation 2, and 2 / sqrt(3) = 1.155.
    differences = {7: [3.0, 0.1, 9.0], 8: [-1.0, 0.2, 9.0], 9: [1.0, 0.3, 9.0]}
    *_, row = bench["table"]({"fp8": differences}).splitlines()
    cells = [cell.strip() for cell in row.strip("| ").split("|")]
    assert cells == ["fp8", "+1.000% +- 1.155", "+0.200% +- 0.058", "+3.000%"]


def test_every_seed_must_hold(bench):
    judge = bench["judge"]
    # docs/benchmarks/fp8_loss.md: the simulation's mean is +0.016%, its farthest seed +0.231%
    by_seed = {
        "sim": {7: [0.010, 3.0, 9.0], 8: [0.231, 0.5, 9.0]},
        "both ways": {7: [5.0, 0.0, 9.0], 8: [-5.0, 0.0, 9.0]},
        "lost": {7: [math.nan] * 3},
    }
    assert judge(by_seed, within=0.25, must_hold=["sim"]) == []
    assert judge(by_seed, within=0.23, must_hold=["sim"]) == [
        "sim, seed 8: +0.231% is not within 0.23%"
    ]
    assert judge(by_seed, within=0.25, must_hold=["both ways", "lost"]) == [
        "both ways, seed 7: +5.000% is not within 0.25%",
        "both ways, seed 8: -5.000% is not within 0.25%",
        "lost, seed 7: +nan% is not within 0.25%",
    ]


def test_the_mean_and_every_seed_must_fail(bench):
    judge = bench["judge"]
    by_seed = {
        "blocks": {7: [7.1, 0.0, 0.0], 8: [10.1, 0.0, 0.0]},
        "lost": {7: [math.nan] * 3},
        "one seed": {7: [5.0, 5.0, 5.0], 8: [-0.25, 5.0, 5.0]},
        "both ways": {7: [5.0, 5.0, 9.0], 8: [-5.0, 5.0, 9.0]},
    }
    assert judge(by_seed, within=0.25, must_fail=["blocks", "lost"]) == []
    assert judge(by_seed, within=0.25, must_fail=["one seed", "both ways"]) == [
        "one seed, seed 8: -0.250% is within 0.25%, and must not be",
        "both ways, mean of the seeds: +0.000% is within 0.25%, and must not be",
    ]


@pytest.mark.parametrize("must", ["--must-hold", "--must-fail"])
def test_a_run_that_is_not_as_it_must_be_is_the_exit_status(must):
    # One document in a step is the same forwards and in reverse: nothing is nearer.
    command = [sys.executable, BENCH, "--steps", "20", "--sequences", "1", "--runs", "bf16"]
    command += [REVERSED, "--within", "0.25", must, REVERSED]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    complaints = [line for line in done.stderr.splitlines() if line.startswith(REVERSED)]
    if must == "--must-hold":
        assert (done.returncode, complaints) == (0, []), done.stderr[-2000:]
        return
    near = "+0.000% is within 0.25%, and must not be"
    assert complaints == [f"{REVERSED}, mean of the seeds: {near}", f"{REVERSED}, seed 7: {near}"]
    assert done.returncode == 1


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (["--within", "0.25"], "--within judges --must-hold and --must-fail"),
        (["--must-hold", "fp8_block_sim"], "--within judges --must-hold and --must-fail"),
        (
            ["--within", "0.25", "--must-fail", "bf16"],
            "--within judges --must-hold and --must-fail",
        ),
        (["--steps", "19"], "argument --steps: 19: must be 20 or more"),
        (["--sequences", "0"], "argument --sequences: 0: must be 1 or more"),
    ],
)
def test_what_cannot_be_judged_is_refused_before_training(asked, answer, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(BENCH), *asked])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(BENCH), run_name="__main__")
    assert answer in capsys.readouterr().err
