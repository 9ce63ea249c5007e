"""What the table of `experiment=r1_pipeline_tiny` shows of the paper's Table 3, run by run.

    python tools/bench/pipeline_story.py runs/seed1 runs/seed2 runs/seed3

Each row is a difference of two models over the same problems, with the interval of the paired
differences; it holds where the whole interval is above 0, and R1 against Dev2 where it is above
-0.03. Minutes are those of the steps.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # a clone that is not installed

from megatron_r1.evaluation.intervals import Estimate, difference  # noqa: E402
from megatron_r1.telemetry.table import render_table  # noqa: E402

_CLAIMS = (
    ("r1_zero", "base", "reasoning", "right", "Zero > base, reasoning"),
    ("r1_stage1", "r1_zero", "reasoning", "readable", "Dev1 > Zero, readability"),
    ("r1_stage2", "r1_stage1", "reasoning", "right", "Dev2 > Dev1, reasoning"),
    ("r1_stage2", "r1_stage1", "reasoning", "language", "Dev2 > Dev1, language consistency"),
    ("r1_stage3", "r1_stage2", "general", "verdicts", "Dev3 > Dev2, general"),
    ("r1_stage4", "r1_stage3", "helpfulness", "verdicts", "R1 > Dev3, helpfulness"),
    ("r1_stage4", "r1_stage3", "safety", "verdicts", "R1 > Dev3, safety"),
    ("r1_stage4", "r1_stage2", "reasoning", "right", "R1 >= Dev2 - 0.03, reasoning"),
    ("distill", "dense_zero", "reasoning", "right", "distilled > dense-RL, reasoning"),
)
_MOST_LOST = 0.03
"""Of R1 against Dev2, by the lower end of the interval."""


def values(run: Path, step: str, suite: str, measure: str) -> dict[str, float]:
    """Problem -> mean over its samples; one without any verdict is left out."""
    result = json.loads((run / f"evaluate_{step}/eval/tiny_world/{suite}.json").read_text())
    found = {}
    for problem in result["by_problem"]:
        value = problem[measure]
        if measure == "right":
            value /= result["samples"]
        elif measure == "verdicts":
            verdicts = [verdict for verdict in value if verdict is not None]
            if not verdicts:
                continue
            value = sum(verdicts) / len(verdicts)
        found[problem["id"]] = value
    return found


def compared(run: Path, first: str, second: str, suite: str, measure: str) -> Estimate:
    a, b = (values(run, step, suite, measure) for step in (first, second))
    both = [problem for problem in a if problem in b]
    return difference([a[problem] for problem in both], [b[problem] for problem in both])


def cell(run: Path, claim: tuple[str, ...]) -> str:
    first, second, suite, measure, label = claim
    try:
        found = compared(run, first, second, suite, measure)
    except FileNotFoundError:
        return "-"
    holds = found.low >= -_MOST_LOST if ">=" in label else found.low > 0
    return f"{found.value:+.3f} ({found.low:+.3f} to {found.high:+.3f}) {'yes' if holds else 'no'}"


def main() -> None:
    runs = [Path(argument) for argument in sys.argv[1:]]
    rows = [[claim[-1], *(cell(run, claim) for run in runs)] for claim in _CLAIMS]
    print(render_table(["claim", *(run.name for run in runs)], rows))
    for run in runs:
        steps = json.loads((run / "pipeline.json").read_text())["steps"]
        seconds = {name: step.get("seconds", 0.0) for name, step in steps.items()}
        longest = sorted(seconds, key=seconds.__getitem__, reverse=True)[:5]
        parts = ", ".join(f"{name} {seconds[name]:.0f}" for name in longest)
        print(f"{run.name}: {sum(seconds.values()) / 60:.1f} minutes in all; seconds of: {parts}")


if __name__ == "__main__":
    main()
