"""metrics.jsonl: one JSON object a step, each step once, however often the run was resumed."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from megatron_r1.errors import DataError
from megatron_r1.telemetry.files import replace_file

METRICS_FILE = "metrics.jsonl"


class MetricsLog:
    """Appends to ``metrics.jsonl``. One process of a run owns it."""

    def __init__(self, run_dir: Path, *, resume_step: int) -> None:
        """Open the log of a run that goes on after `resume_step` (0 for a run that begins).

        Lines of later steps, and a last line that a kill has torn, are removed in one rename: those
        steps will be taken again.
        """
        run_dir.mkdir(parents=True, exist_ok=True)
        path = run_dir / METRICS_FILE
        if path.exists():
            kept = [row for row in read_metrics(path) if row["step"] <= resume_step]
            with replace_file(path) as draft:
                draft.write_text("".join(_to_line(row) for row in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one step and hand it to the operating system. NaN and infinities become null."""
        finite = {
            name: float(value) if math.isfinite(value) else None for name, value in metrics.items()
        }
        self._file.write(_to_line({"step": step, **finite}))
        self._file.flush()

    def close(self) -> None:
        self._file.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Every step of a ``metrics.jsonl``, in the order written.

    A row holds ``step``, an int, and floats; None where a value was not finite.

    A last line that does not parse was torn by a kill, or is being written, and is left out.

    Raises:
        DataError: a line before the last one does not parse; names file and line.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    if lines[-1] == "":
        lines.pop()
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number < len(lines):
                raise DataError(f"{path}, line {number}: not a JSON object ({error})") from error
    return rows


def _to_line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, allow_nan=False) + "\n"
