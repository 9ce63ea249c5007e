"""`tools/bench/fp8_loss.py` says which run is not as it must be."""

from __future__ import annotations

import math
import runpy
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "tools/bench/fp8_loss.py"


def test_runs_are_judged_by_their_distance():
    judge = runpy.run_path(str(BENCH))["judge"]
    means = {"near": -0.25, "far": -0.26, "lost": math.nan}
    assert judge(means, within=0.25, must_hold=["near"], must_fail=["far", "lost"]) == []
    assert judge(means, within=0.25, must_hold=["near", "far", "lost"], must_fail=["near"]) == [
        "far: -0.260% is not within 0.25%",
        "lost: +nan% is not within 0.25%",
        "near: -0.250% is within 0.25%, and must not be",
    ]
    assert judge(means, within=0.3, must_fail=["far"]) == [
        "far: -0.260% is within 0.3%, and must not be"
    ]


@pytest.mark.parametrize(
    "asked",
    [
        ["--must-hold", "fp8_block_sim"],
        ["--within", "0.25"],
        ["--within", "0.25", "--must-fail", "bf16"],
    ],
)
def test_what_cannot_be_judged_is_refused_before_training(asked, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", [str(BENCH), *asked])
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(BENCH), run_name="__main__")
    assert "--within judges --must-hold and --must-fail" in capsys.readouterr().err
