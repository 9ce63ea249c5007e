"""From a base model to R1: the steps of `stage=r1_pipeline`, what each read and made, the table.

A step is a run like any other, in a folder of its own. What it reads is known by content: files and
models that its settings name are hashed, and a hash of those and of its other settings is the
step's *fingerprint*. `pipeline.json` has that under which each step was begun, and done:

    same fingerprint, done, what it made is as it was     nothing to do
    same fingerprint, begun                               its run resumes
    anything else                                         its folder is set aside; it starts over

So a pipeline that was killed goes on where it was, and one whose settings or files have changed
runs again what they change, and nothing else.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from megatron_r1 import __version__
from megatron_r1.checkpoint.artifacts import Hashes, inputs_of
from megatron_r1.config.curation import CurateStageConfig
from megatron_r1.config.load import to_yaml, world_size_from_environment
from megatron_r1.config.paths import flatten, is_read
from megatron_r1.config.pipeline import (
    EVALUATE,
    Endpoint,
    EvaluationStageConfig,
    PipelineConfig,
)
from megatron_r1.config.run import RunConfig
from megatron_r1.config.sft import CollectingConfig, R1Stage3Config
from megatron_r1.config.stage import StageConfig
from megatron_r1.errors import DataError, UserError
from megatron_r1.evaluation.stage_table import stage_table, write_stage_table
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.platform.host import prepare, start_process_group, stop_process_group
from megatron_r1.stages.curate import COUNTS
from megatron_r1.stages.dispatch import check_run, run_stage
from megatron_r1.stages.steps import MODEL, Step, plan_steps
from megatron_r1.telemetry.files import write_json
from megatron_r1.telemetry.run_dir import HOW_NOT_WHAT, RunDir, checkout_commit

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


def run_pipeline(config: RunConfig) -> None:
    """Run, or go on with, every step, then make the table. Every rank of the job calls it."""
    stage = config.stage
    assert isinstance(stage, PipelineConfig), "dispatch.py looks at it"
    steps = plan_steps(config, world_size_from_environment())
    with _one_job(config) as record, _endpoint(stage.endpoint) as url:
        for step in steps:
            if stage.only and step.name not in stage.only:
                continue
            run_step(asking(step, url), record)
        on_main_rank(lambda: report(steps, record, config))


def asking(step: Step, url: str | None) -> Step:
    """The same step, whose judges and teacher are the pipeline's own endpoint, where it has one."""
    if url is None:
        return step
    config = step.config
    evaluation = dataclasses.replace(
        config.evaluation, judge=dataclasses.replace(config.evaluation.judge, base_url=url)
    )
    judge, stage = dataclasses.replace(config.judge, base_url=url), config.stage
    if isinstance(stage, CollectingConfig):
        stage = dataclasses.replace(stage, teacher=dataclasses.replace(stage.teacher, base_url=url))
    config = dataclasses.replace(config, evaluation=evaluation, judge=judge, stage=stage)
    return dataclasses.replace(step, config=config)


def run_step(step: Step, record: Record | None) -> None:
    """Run one step if it has to be, under its fingerprint."""
    decision = on_main_rank(lambda: record.decide(step))
    on_main_rank(lambda: print(f"step {step.name}: {decision.what}", flush=True))
    if decision.is_done:
        return
    started_s = time.monotonic()
    try:
        check_run(step.config, world_size_from_environment())
        run_stage(step.config)
    except UserError as error:
        named = type(error)(f"step {step.name}: {error}")
        named.one_rank = error.one_rank
        raise named from error
    on_main_rank(lambda: record.done(step, time.monotonic() - started_s))


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
        if self._path.is_file():
            try:
                self.steps = json.loads(self._path.read_text())["steps"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{self._path} cannot be read: {error}. Restore it, or move it away: every "
                    "step starts over then"
                ) from error

    def decide(self, step: Step) -> Decision:
        """Whether a step is done, goes on or starts over; its folder is ready when this returns.

        Raises:
            DataError: an input is not there, or its step is not done.
        """
        fingerprint, inputs = self._fingerprint(step)
        known = self.steps.get(step.name, {})
        same = known.get("fingerprint") == fingerprint
        if same and known["status"] == "done":
            found = self._outputs(step)
            if all(known["outputs"].get(name) == value for name, value in found.items()):
                return Decision(True, "done before")
            changed = "what it made is not what it was"
        elif same:
            return Decision(False, "goes on")
        else:
            changed = self._what_changed(known, step, inputs)
        self._start_over(step)
        self.steps[step.name] = {
            "status": "begun",
            "fingerprint": fingerprint,
            "stage": step.config.stage.name,
            "folder": step.name,
            "program": program(),
            "settings": self._settings(step)[0],
            "inputs": inputs,
        }
        self._write()
        return Decision(False, changed)

    def done(self, step: Step, seconds: float) -> None:
        row = self.steps[step.name]
        row |= {"status": "done", "outputs": self._outputs(step), "program": program()}
        if isinstance(step.config.stage, CurateStageConfig):
            row["counts"] = json.loads((self._dir / step.name / COUNTS).read_text())
        row["seconds"] = round(row.get("seconds", 0.0) + seconds, 1)
        row["finished"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._write()

    def is_done(self, name: str) -> bool:
        return self.steps.get(name, {}).get("status") == "done"

    def _fingerprint(self, step: Step) -> tuple[str, dict[str, dict[str, str]]]:
        settings, paths = self._settings(step)
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
        content = {key: row["sha256"] for key, row in inputs.items()}
        text = json.dumps([settings, content], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest(), inputs

    def _settings(self, step: Step) -> tuple[dict[str, Any], dict[str, str]]:
        """(what a step makes depends on: setting -> value, setting -> path of what it reads)."""
        tree = flatten(OmegaConf.to_container(OmegaConf.create(to_yaml(step.config))))
        left_out = (*_NOT_PART_GROUPS, *unused_groups(step.config.stage))
        settings: dict[str, Any] = {}
        paths: dict[str, str] = {}
        for key, value in tree.items():
            if key.startswith(left_out) or key.endswith(HOW_NOT_WHAT):
                continue
            if key in step.inputs or (value and is_read(key)):
                paths[key] = str(value)
            else:
                settings[key] = value
        return settings, paths

    def _outputs(self, step: Step) -> dict[str, str | None]:
        folder = self._dir / step.name
        return {
            name: self._hashes.of(folder if name == MODEL else folder / name)
            for name in step.outputs
        }

    def _what_changed(
        self, known: dict[str, Any], step: Step, inputs: dict[str, dict[str, str]]
    ) -> str:
        if not known:
            return "begins"
        before, now = known.get("settings", {}), self._settings(step)[0]
        changed = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        known_inputs = known.get("inputs", {})
        changed += [
            key
            for key, row in inputs.items()
            if known_inputs.get(key, {}).get("sha256") != row["sha256"]
        ]
        return f"starts over: {', '.join(changed[:4]) or 'its inputs'} changed"

    def _start_over(self, step: Step) -> None:
        """An empty folder. What it held is kept, once; whatever happens meanwhile, the record says
        nothing of a folder that is not whole."""
        folder, aside = self._dir / step.name, self._dir / SET_ASIDE / step.name
        if self.steps.pop(step.name, None) is not None:
            self._write()
        if folder.is_dir():
            shutil.rmtree(aside, ignore_errors=True)
            aside.parent.mkdir(exist_ok=True)
            folder.rename(aside)

    def _write(self) -> None:
        write_json(self._path, {"steps": self.steps})
        self._hashes.save()


@cache
def program() -> dict[str, str | None]:
    """What runs the steps: its version, and the checkout's commit."""
    return {"version": __version__, "commit": checkout_commit()}


def report(steps: Sequence[Step], record: Record, config: RunConfig) -> None:
    """The table of all models that are evaluated; on the main rank."""
    stage = config.stage
    results = {}
    for column, step in stage.columns.items():
        name = EVALUATE + step
        if record.is_done(name):
            evaluation = next(s for s in steps if s.name == name).config.evaluation
            file = config.run.dir / name / "eval" / f"{evaluation.name}.json"
            results[column] = json.loads(file.read_text())["suites"]
    left = [step.name for step in steps if not record.is_done(step.name)]
    if results:
        table = stage_table(results, confidence=evaluation.confidence)
        write_stage_table(table, config.run.dir, title=f"{config.run.name}: from base to R1")
        print(f"\n{table.markdown()}\n\n{config.run.dir}/table.md, .txt, .json, .png", flush=True)
    if left:
        print(f"steps that are left: {', '.join(left)}", flush=True)


@contextmanager
def _one_job(config: RunConfig) -> Iterator[Record | None]:
    """All ranks in one job for all steps; on the main rank the pipeline's run directory, for this
    job alone, and its record."""
    opened: list[RunDir] = []
    records: list[Record] = []

    def open_them() -> None:
        opened.append(RunDir(config, inputs_of(config)))
        records.append(Record(config))

    start_process_group(prepare(), timeout_minutes=config.cluster.timeout_minutes)
    try:
        on_main_rank(open_them)
        yield records[0] if records else None
    finally:
        for run_dir in opened:
            run_dir.close()
        stop_process_group()


@contextmanager
def _endpoint(endpoint: Endpoint) -> Iterator[str | None]:
    """What is served beside the steps, on the main rank, which alone asks; its base URL."""
    if endpoint is Endpoint.none or os.environ.get("RANK", "0") != "0":
        yield None
        return
    from megatron_r1.data.tiny_world.server import serving_teacher

    with serving_teacher() as url:
        yield url
