"""Curation as a step of a pipeline: `data/curation/`, over each of several sets
(arXiv:2501.12948v2 B.3.1 and D.1)."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_r1.config.curation import CurateStageConfig
from megatron_r1.data.curation.pipeline import curate
from megatron_r1.errors import ConfigError
from megatron_r1.telemetry.files import replace_file, write_json

COUNTS, TABLE = "curation.json", "curation.txt"
"""What each step dropped and why, set by set; the first is written last."""


def run_curate(stage: CurateStageConfig, run_dir: Path) -> str:
    """Write every set of `stage.sets`, on the main rank. Returns what was dropped, as a table.

    Raises:
        ConfigError: no set is named.
        DataError: a file that cannot be read, a bad line, or nothing is kept of a set.
    """
    if not stage.sets:
        raise ConfigError("stage.sets is empty: name a file, +stage.sets.NAME=FILE")
    contamination = stage.curation.decontamination
    contamination = dataclasses.replace(
        contamination, files=[*contamination.files, *stage.against.values()]
    )
    config = dataclasses.replace(stage.curation, decontamination=contamination)
    reports = {
        name: curate([Path(path)], run_dir / f"{name}.jsonl", config)
        for name, path in stage.sets.items()
    }
    text = "\n\n".join(f"{name}\n\n{found.describe()}" for name, found in reports.items())
    with replace_file(run_dir / TABLE) as draft:
        draft.write_text(text + "\n", encoding="utf-8")
    write_json(run_dir / COUNTS, {name: found.to_json() for name, found in reports.items()})
    return text
