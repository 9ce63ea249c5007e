"""What a pipeline's steps were begun with and what they made: `pipeline.json`.

What a step reads is known by content: files and models that its settings name are hashed. The
record has those hashes and the other settings with which each step was begun, and done:

    the same, done, what it made is as it was     nothing to do
    the same, begun                               its run resumes
    those of what was set aside, whole            that comes back
    anything else                                 its folder is set aside; it starts over
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from megatron_r1 import __version__
from megatron_r1.checkpoint.artifacts import Hashes
from megatron_r1.config.curation import CurateStageConfig
from megatron_r1.config.earlier import changed_settings
from megatron_r1.config.load import settings_of
from megatron_r1.config.paths import is_read
from megatron_r1.config.pipeline import EvaluationStageConfig
from megatron_r1.config.run import RunConfig
from megatron_r1.config.sft import R1Stage3Config
from megatron_r1.config.stage import StageConfig
from megatron_r1.errors import DataError
from megatron_r1.stages.curate import COUNTS
from megatron_r1.stages.steps import MODEL, Step
from megatron_r1.telemetry.files import write_json
from megatron_r1.telemetry.run_dir import HOW_NOT_WHAT, checkout_commit

RECORD = "pipeline.json"
SET_ASIDE = "replaced"
"""Folder of the run directory: the last run of each step that was started over."""
_NOT_PART_GROUPS = ("cluster.", "telemetry.", "parallel.", "monitor.", "run.root", "run.name")
"""With `HOW_NOT_WHAT`, settings that do not change what a step makes."""


def unused_groups(stage: StageConfig) -> tuple[str, ...]:
    """Beginnings of settings that are there for other stages than this one."""
    is_judged = isinstance(stage, R1Stage3Config) and stage.collect.judged_datasets
    is_measured = isinstance(stage, EvaluationStageConfig)
    return (*(() if is_judged else ("judge.",)), *(() if is_measured else ("evaluation.",)))


@dataclass(frozen=True)
class Decision:
    """What is to be done with a step, and why."""

    is_done: bool
    what: str


class Record:
    """`pipeline.json`, on the main rank: what each step was begun with, and what it made."""

    def __init__(self, config: RunConfig) -> None:
        self._dir = config.run.dir
        self._hashes = Hashes(self._dir / ".hashes.json")
        self._path = self._dir / RECORD
        self.steps: dict[str, dict[str, Any]] = {}
        self.replaced: dict[str, dict[str, Any]] = {}
        """Of the runs that are set aside, those that were done."""
        if self._path.is_file():
            try:
                found = json.loads(self._path.read_text())
                self.steps, self.replaced = found["steps"], found.get("replaced", {})
                for row in (*self.steps.values(), *self.replaced.values()):
                    _check(row)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise DataError(
                    f"{self._path} cannot be read: {error!r}. Restore it, or move it away: every "
                    "step starts over then"
                ) from error

    def decide(self, step: Step) -> Decision:
        """Whether a step is done, goes on or starts over; its folder is ready when this returns.

        Raises:
            DataError: an input is not there, or its step is not done.
        """
        self._end_change(step)  # of a start that was killed
        basis = self._basis(step)
        known, aside = self.steps.get(step.name), self.replaced.get(step.name)
        changed = _changed(known, basis, step) if known else []
        if known and not changed:
            self._know_all(known, basis)
            if known["status"] != "done":
                return Decision(False, "goes on")
            if self._is_back(step, known):
                return Decision(True, "done before")
            what = "what it made is not what it was"
        elif aside and not _changed(aside, basis, step) and self._is_back(step, aside):
            self.replaced.pop(step.name)
            if known and known["status"] == "done":
                self.replaced[step.name] = known
            self.steps[step.name] = aside
            self._know_all(aside, basis)
            self._write()
            return Decision(True, "done before, and set aside: it is back")
        else:
            what = f"starts over: {', '.join(changed[:4])} changed" if known else "begins"
        self._start_over(step)
        self.steps[step.name] = {
            "status": "begun",
            "stage": step.config.stage.name,
            "folder": step.name,
            "program": program(),
            **basis,
        }
        self._write()
        return Decision(False, what)

    def _know_all(self, row: dict[str, Any], basis: dict[str, dict[str, Any]]) -> None:
        """Settings that came after the row's are written into it as what they are now: another
        default, later, is a change."""
        if row["settings"] != basis["settings"]:
            row["settings"] = basis["settings"]
            self._write()

    def done(self, step: Step, seconds: float) -> None:
        row = self.steps[step.name]
        outputs = self._outputs(step, self._dir / step.name)
        row |= {"status": "done", "outputs": outputs, "program": program()}
        if isinstance(step.config.stage, CurateStageConfig):
            row["counts"] = json.loads((self._dir / step.name / COUNTS).read_text())
        row["seconds"] = round(row.get("seconds", 0.0) + seconds, 1)
        row["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write()

    def is_done(self, name: str) -> bool:
        return self.steps.get(name, {}).get("status") == "done"

    def current(self, steps: Sequence[Step]) -> list[Step]:
        """Those of a pipeline's steps that are done as they are configured now, and whose inputs
        are, too."""
        found: list[Step] = []
        for step in steps:
            made = {done.name for done in found}
            if made.issuperset(step.makers) and self._is_current(step):
                found.append(step)
        return found

    def _is_current(self, step: Step) -> bool:
        if not self.is_done(step.name):
            return False
        row = self.steps[step.name]
        try:
            changed = _changed(row, self._basis(step), step)
        except DataError:
            return False
        return not changed and self._holds(self._dir / step.name, step, row)

    def _basis(self, step: Step) -> dict[str, dict[str, Any]]:
        """What a step depends on: `settings`, and its `inputs` by their content."""
        settings, paths = _settings_and_paths(step)
        inputs = {}
        for setting, path in paths.items():
            maker = step.inputs.get(setting, "").partition(":")[0]
            is_made_here = maker in step.makers
            found = self._hashes.of(Path(path))
            what = f"step {step.name}: {setting} = {path}"
            if found is None:
                way_out = f"Run the step {maker} first" if is_made_here else "Make it"
                raise DataError(f"{what} is not there. {way_out}")
            if is_made_here and not self.is_done(maker):
                raise DataError(
                    f"{what} is the step {maker}'s, which is not done. Run the step {maker} first"
                )
            inputs[setting] = {"path": path, "sha256": found}
            if setting in step.inputs:
                inputs[setting]["from"] = step.inputs[setting]
        return {"settings": settings, "inputs": inputs}

    def _outputs(self, step: Step, folder: Path) -> dict[str, str | None]:
        return {
            name: self._hashes.of(folder if name == MODEL else folder / name)
            for name in step.outputs
        }

    def _holds(self, folder: Path, step: Step, row: dict[str, Any]) -> bool:
        """Whether a folder has what a step that is done made."""
        found = self._outputs(step, folder)
        made = row["outputs"]
        return folder.is_dir() and all(made.get(name) == value for name, value in found.items())

    def _is_back(self, step: Step, row: dict[str, Any]) -> bool:
        """Whether the step's folder has what this row says, after what was set aside has changed
        places with it, if that has."""
        folder, aside = self._dir / step.name, self._dir / SET_ASIDE / step.name
        if self._holds(folder, step, row):
            return True
        if not self._holds(aside, step, row):
            return False
        if folder.is_dir():
            folder.rename(aside.with_name(f".{step.name}"))
        aside.rename(folder)
        self._end_change(step)
        return True

    def _end_change(self, step: Step) -> None:
        """Give a folder that is on its way to the other's place the one that is free."""
        folder, aside = self._dir / step.name, self._dir / SET_ASIDE / step.name
        on_its_way = aside.with_name(f".{step.name}")
        if on_its_way.is_dir():
            on_its_way.rename(aside if folder.is_dir() else folder)

    def _start_over(self, step: Step) -> None:
        """An empty folder. What it held is kept, once; but what was never done takes no place from
        what was. Whatever happens meanwhile, the record says nothing of a folder that is not whole.
        """
        folder, aside = self._dir / step.name, self._dir / SET_ASIDE / step.name
        row = self.steps.pop(step.name, None)
        if row is not None:
            if row["status"] == "done" and self._holds(folder, step, row):
                self.replaced[step.name] = row
            self._write()
        if not folder.is_dir():
            return
        kept = self.replaced.get(step.name)
        if kept is not None and self._holds(aside, step, kept):
            shutil.rmtree(folder)
        else:
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)

    def _write(self) -> None:
        write_json(self._path, {"steps": self.steps, "replaced": self.replaced})
        self._hashes.save()


def _settings_and_paths(step: Step) -> tuple[dict[str, Any], dict[str, str]]:
    """(what a step makes depends on: setting -> value, setting -> path of what it reads)."""
    left_out = (*_NOT_PART_GROUPS, *unused_groups(step.config.stage))
    settings: dict[str, Any] = {}
    paths: dict[str, str] = {}
    for key, value in settings_of(step.config).items():
        if key.startswith(left_out) or key.endswith(HOW_NOT_WHAT):
            continue
        if key in step.inputs or (value and is_read(key)):
            paths[key] = str(value)
        else:
            settings[key] = value
    return settings, paths


def _check(row: dict[str, Any]) -> None:
    """KeyError or its like, where a row lacks what is read of it."""
    parts = [row["settings"], *row["inputs"].values()]
    if row["status"] == "done":
        parts.append(row["outputs"])
    for part in parts:
        part.items()
    for found in row["inputs"].values():
        found["sha256"]


def _changed(row: dict[str, Any], basis: dict[str, dict[str, Any]], step: Step) -> list[str]:
    """Settings and inputs in which a row differs from what the step would be made from now."""
    before, now = (
        {key: found["sha256"] for key, found in inputs.items()}
        for inputs in (row["inputs"], basis["inputs"])
    )
    contents = sorted(key for key in before | now if before.get(key) != now.get(key))
    return [*changed_settings(row["settings"], basis["settings"], step.config), *contents]


@cache
def program() -> dict[str, str | None]:
    """What runs the steps: its version, and the checkout's commit."""
    return {"version": __version__, "commit": checkout_commit()}
