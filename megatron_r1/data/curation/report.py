"""What curation did: counts and first reasons of each step, as tables and as a manifest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from megatron_r1.data.curation.statistics import Statistics
from megatron_r1.telemetry.table import render_table

_FIRST_REASONS = 3
_SHOWN_CHARS = 110


@dataclass
class StepCount:
    """Examples that reached a step, those that it dropped, and the first of them by place."""

    name: str
    reached: int = 0
    dropped: int = 0
    first: list[str] = field(default_factory=list)

    def count(self, where: str, reason: str) -> None:
        """One example, with the reason it was dropped for, or none."""
        self.reached += 1
        if reason:
            self.dropped += 1
            if len(self.first) < _FIRST_REASONS:
                self.first.append(f"{where}: {reason}")


@dataclass
class CurationReport:
    """Counts of one run."""

    steps: list[StepCount]
    """``bad line`` first, then the steps in order."""
    statistics: Statistics = field(default_factory=Statistics)
    kept: int = 0

    def to_json(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "steps": [
                {
                    "name": step.name,
                    "reached": step.reached,
                    "dropped": step.dropped,
                    "first": step.first,
                }
                for step in self.steps
            ],
            "statistics": self.statistics.to_json(),
        }

    def describe(self) -> str:
        """Two tables, and what was dropped first, by file and line."""
        rows = [
            [step.name, str(step.reached), str(step.dropped), str(step.reached - step.dropped)]
            for step in self.steps
        ]
        parts = [render_table(["step", "examples", "dropped", "left"], rows)]
        reasons = [_cut(f"{step.name}: {first}") for step in self.steps for first in step.first]
        if reasons:
            parts.append("\n".join(reasons))
        if self.kept:
            parts.append(_statistics_table(self.statistics.to_json()))
        return "\n\n".join(parts)


def _statistics_table(found: dict[str, Any]) -> str:
    header = ["data set", "examples", "text", "mean words", "median", "p95", "max", "languages"]
    rows = []
    for name, of_set in found.items():
        languages = of_set["languages"]
        shares = ", ".join(
            f"{code} {100 * count / of_set['examples']:.0f}%"
            for code, count in list(languages.items())[:4]
        )
        for text in ("question", "response"):
            words = of_set[f"{text}_words"]
            if words is not None:
                numbers = [f"{words[key]:.0f}" for key in ("mean", "median", "p95", "max")]
                rows.append([name or "-", str(of_set["examples"]), text, *numbers, shares])
    return render_table(header, rows)


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
