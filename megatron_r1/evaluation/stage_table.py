"""The models of a pipeline side by side, like DeepSeek-R1's Table 3 (arXiv:2501.12948v2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_r1.evaluation.intervals import Estimate, estimate
from megatron_r1.telemetry.curves import GRID, INK
from megatron_r1.telemetry.files import replace_file
from megatron_r1.telemetry.table import render_table

FORM = {"format": "format", "language": "language consistency", "readable": "readability"}
"""Rules that look at how a response is written, and their rows."""
_MARKS = "#8c8c8c #2f6fb7 #7a5bb5 #c8701f #2e8b57 #b23a48 #4b5563 #0f766e #d9579b".split()


@dataclass(frozen=True)
class StageTable:
    """Rows of estimates, a column for each model."""

    columns: tuple[str, ...]
    rows: Mapping[str, Mapping[str, Estimate]]
    """Row -> column -> estimate; a model that was not measured there has none."""
    notes: tuple[str, ...] = ()
    """What is missing from the measures, or counts as wrong for want of a verdict."""

    def markdown(self) -> str:
        """Bars and dashes, then the notes; reads well on a terminal too."""
        body = [
            [label, *(_cell(cells.get(column)) for column in self.columns)]
            for label, cells in self.rows.items()
        ]
        listed = [f"- {note}" for note in self.notes]
        return "\n".join(
            [render_table(["", *self.columns], body), *([""] if listed else []), *listed]
        )

    def to_json(self) -> dict[str, Any]:
        return {
            "columns": list(self.columns),
            "rows": {
                label: {column: found.to_json() for column, found in cells.items()}
                for label, cells in self.rows.items()
            },
            "notes": list(self.notes),
        }


def stage_table(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], *, confidence: float = 0.95
) -> StageTable:
    """From what evaluations wrote.

    Args:
        results: column -> suite -> `SuiteResult.to_json`.

    Returns: a row for each suite that rules grade, pass@1; then `FORM`, over the problems of all of
    these; then a row for each suite that a judge reads, such as helpfulness and safety.
    """
    suites = list(dict.fromkeys(suite for found in results.values() for suite in found))
    judged = [s for s in suites if any(_is_judged(found.get(s)) for found in results.values())]
    ruled = [suite for suite in suites if suite not in judged]
    rows: dict[str, dict[str, Estimate]] = {}
    for suite in ruled:
        rows[f"{suite}, pass@1"] = _row(results, suite, "pass@1")
    for rule, label in FORM.items():
        rows[label] = {
            column: estimate(values, confidence=confidence)
            for column, found in results.items()
            if (values := _values(found, ruled, rule))
        }
    for suite in judged:
        rows[suite] = _row(results, suite, "judged")
    notes = tuple(
        f"{column}, {suite}: {count} {reason}"
        for column, found in results.items()
        for suite, result in found.items()
        for reason, count in result.get("not_counted", {}).items()
    )
    return StageTable(
        tuple(results), {label: cells for label, cells in rows.items() if cells}, notes
    )


def write_stage_table(table: StageTable, directory: Path, *, title: str) -> None:
    """``table.md``, ``table.txt``, ``table.json`` and ``table.png``."""
    import json

    directory.mkdir(parents=True, exist_ok=True)
    for name, text in (
        ("table.md", f"# {title}\n\n{table.markdown()}\n"),
        ("table.txt", f"{table.markdown()}\n"),
        ("table.json", json.dumps(table.to_json(), indent=1) + "\n"),
    ):
        with replace_file(directory / name) as draft:
            draft.write_text(text)
    draw_stage_table(table, directory / "table.png", title=title)


def draw_stage_table(table: StageTable, png_path: Path, *, title: str) -> None:
    """A panel for each row: every model's estimate, and a bar for its interval."""
    from matplotlib.figure import Figure  # no pyplot: its figures are global and stay in memory

    labels: Sequence[str] = list(table.rows)
    num_across = min(3, len(labels))
    num_down = -(-len(labels) // num_across)
    figure = Figure(figsize=(3.4 * num_across, 0.4 + 2.5 * num_down), layout="constrained")
    axes = figure.subplots(num_down, num_across, squeeze=False).flatten().tolist()
    for axis, label in zip(axes, labels, strict=False):
        for place, column in enumerate(table.columns):
            found = table.rows[label].get(column)
            if found is None:
                continue
            color = _MARKS[place % len(_MARKS)]
            axis.plot([place, place], [found.low, found.high], color=color, linewidth=2.4)
            axis.scatter([place], [found.value], color=color, s=30, zorder=3)
        axis.set_title(label, fontsize=9, color=INK, loc="left")
        axis.set_xticks(
            range(len(table.columns)), table.columns, fontsize=7.5, rotation=30, color=INK
        )
        axis.set_xlim(-0.5, len(table.columns) - 0.5)
        axis.set_ylim(-0.03, 1.03)
        axis.grid(axis="y", color=GRID, linewidth=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(labelsize=7.5, colors=INK, length=0)
        axis.spines[:].set_visible(False)
    for axis in axes[len(labels) :]:
        axis.set_visible(False)
    figure.suptitle(title, fontsize=10, color=INK)
    with replace_file(png_path) as draft:
        figure.savefig(draft, format="png", dpi=130)


def _row(
    results: Mapping[str, Mapping[str, Mapping[str, Any]]], suite: str, measure: str
) -> dict[str, Estimate]:
    return {
        column: Estimate(**found[suite]["measures"][measure])
        for column, found in results.items()
        if suite in found and measure in found[suite]["measures"]
    }


def _values(
    found: Mapping[str, Mapping[str, Any]], suites: Sequence[str], rule: str
) -> list[float]:
    """One for each problem of these suites."""
    return [
        problem[rule]
        for suite in suites
        for problem in found.get(suite, {}).get("by_problem", ())
        if rule in problem
    ]


def _is_judged(result: Mapping[str, Any] | None) -> bool:
    return result is not None and any("verdicts" in problem for problem in result["by_problem"])


def _cell(found: Estimate | None) -> str:
    return "-" if found is None else f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"
