"""Results with their intervals, in one picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_r1.telemetry.curves import GRID, INK
from megatron_r1.telemetry.files import replace_file

COLORS = {"pass@1": "#2f6fb7", "cons": "#7a5bb5", "judged": "#c8701f", "pass": "#2e8b57"}
OTHER = "#6b7280"


def draw_results(results: Mapping[str, Mapping[str, Any]], png_path: Path) -> bool:
    """One point for each measure of each suite, and a bar for its interval; False where none is.

    Args:
        results: suite -> `SuiteResult.to_json`.
    """
    rows = [
        (f"{suite}  {measure}", measure, found)
        for suite, result in results.items()
        for measure, found in result["measures"].items()
    ]
    if not rows:
        return False

    from matplotlib.figure import Figure  # no pyplot: its figures are global and stay in memory

    figure = Figure(figsize=(7.2, 0.9 + 0.34 * len(rows)), layout="constrained")
    axis = figure.subplots()
    for position, (_, measure, found) in enumerate(rows):
        color = COLORS.get(measure) or COLORS.get(measure.partition("@")[0], OTHER)
        axis.plot([found["low"], found["high"]], [position] * 2, color=color, linewidth=2.2)
        axis.scatter([found["value"]], [position], color=color, s=34, zorder=3)
        axis.annotate(
            f"{found['value']:.3f}", (found["value"], position), (0, 5), fontsize=7.5,
            textcoords="offset points", ha="center", color=INK,
        )  # fmt: skip
    axis.set_yticks(range(len(rows)), [label for label, _, _ in rows], fontsize=8.5, color=INK)
    axis.set_ylim(len(rows) - 0.4, -0.7)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel("mean over problems, with its interval", fontsize=8.5, color=INK)
    axis.grid(axis="x", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, colors=INK, length=0)
    axis.spines[:].set_visible(False)
    with replace_file(png_path) as draft:
        figure.savefig(draft, format="png", dpi=130)
    return True
