"""What tools/bench/pipeline_story.py takes for shown."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def evaluated(run: Path, step: str, suite: str, **measures: list) -> None:
    """The result of a suite: a value for each problem, 4 samples of each."""
    ((measure, values),) = measures.items()
    of_form = {"language": 1.0, "readable": 1.0}
    problems = [{"id": f"p/{n}", **of_form, measure: value} for n, value in enumerate(values)]
    path = run / f"evaluate_{step}/eval/tiny_world/{suite}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"samples": 4, "by_problem": problems}))


def test_a_claim_holds_by_its_whole_interval(tmp_path):
    run = tmp_path / "seed1"
    # Right samples of 4: Dev2 2 everywhere, R1 3 and 1 by turns, so 0 +- 1.96 * 0.2582 / sqrt(16),
    # which is less than what 16 problems may say: 3.84 / (16 + 3.84) = 0.194.
    evaluated(run, "r1_stage2", "reasoning", right=[2] * 16)
    evaluated(run, "r1_stage4", "reasoning", right=[3, 1] * 8)
    evaluated(run, "base", "reasoning", right=[0, 1] * 8)
    evaluated(run, "r1_zero", "reasoning", right=[4, 4] * 8)
    # One problem without a verdict counts in neither.
    evaluated(run, "r1_stage3", "safety", verdicts=[[0.0], [1.0], [None], [0.0]])
    evaluated(run, "r1_stage4", "safety", verdicts=[[1.0], [1.0], [1.0], [0.0]])
    evaluated(run, "r1_stage3", "helpfulness", verdicts=[[0.0]] * 2)
    evaluated(run, "r1_stage4", "helpfulness", verdicts=[[1.0]] * 2)
    steps = {"base": {"seconds": 90.0}, "r1_zero": {"seconds": 30.0}}
    (run / "pipeline.json").write_text(json.dumps({"steps": steps}))
    command = [sys.executable, ROOT / "tools/bench/pipeline_story.py", run]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0].strip("| "): line for line in done.stdout.splitlines()}
    assert "+0.000 (-0.194 to +0.194) no" in rows["R1 >= Dev2 - 0.03, reasoning"]
    assert "+0.875 (+0.530 to +0.917) yes" in rows["Zero > base, reasoning"]
    assert "+0.333 (-0.320 to +0.987) no" in rows["R1 > Dev3, safety"]
    # Two problems, both won, say little.
    assert "+1.000 (-0.315 to +1.000) no" in rows["R1 > Dev3, helpfulness"]
    assert rows["Dev3 > Dev2, general"].split()[-1].strip("|") in ("-", "")
    assert "seed1: 2.0 minutes in all; seconds of: base 90, r1_zero 30" in done.stdout
