"""From a base model to R1: the steps of `stage=r1_pipeline`, one after another, and the table.

A step is a run like any other, in a folder of its own. A pipeline that was killed goes on where it
was, and one whose settings or files have changed runs again what they change, and nothing else
(`pipeline_record.py`). A setting that was a mistake costs its own run.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from megatron_r1.checkpoint.artifacts import inputs_of
from megatron_r1.config.load import world_size_from_environment
from megatron_r1.config.pipeline import EVALUATE, Endpoint, PipelineConfig
from megatron_r1.config.run import RunConfig
from megatron_r1.config.sft import CollectingConfig
from megatron_r1.errors import UserError
from megatron_r1.evaluation.stage_table import stage_table, write_stage_table
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.platform.host import prepare, start_process_group, stop_process_group
from megatron_r1.stages.dispatch import check_moments, check_run, run_stage
from megatron_r1.stages.pipeline_record import Record
from megatron_r1.stages.steps import Step, plan_steps
from megatron_r1.telemetry.run_dir import RunDir


def run_pipeline(config: RunConfig) -> None:
    """Run, or go on with, every step, then make the table. Every rank of the job calls it."""
    stage = config.stage
    assert isinstance(stage, PipelineConfig), "dispatch.py looks at it"
    steps = plan_steps(config, world_size_from_environment())
    asked_for = [step for step in steps if not stage.only or step.name in stage.only]
    for step in asked_for:
        try:
            check_moments(step.config)
        except UserError as error:
            raise type(error)(f"step {step.name}: {error}") from error
    with _one_job(config) as record, _endpoint(stage.endpoint) as url:
        for step in asked_for:
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
    """Run one step if it has to be; see `Record.decide`."""
    decision = on_main_rank(lambda: record.decide(step))
    on_main_rank(lambda: print(f"step {step.name}: {decision.what}", flush=True))
    if decision.is_done:
        return
    started_s = time.monotonic()
    try:
        check_run(step.config, world_size_from_environment())
        run_stage(step.config)
    except UserError as error:
        named = type(error)(f"step {step.name}: {error}{_warning(step, str(error))}")
        named.one_rank = error.one_rank
        raise named from error
    on_main_rank(lambda: record.done(step, time.monotonic() - started_s))


def _warning(step: Step, advice: str) -> str:
    """What an error that speaks to the run of one stage would do to a pipeline."""
    if "run.overwrite" not in advice:
        return ""
    return (
        f". In a pipeline run.overwrite=true starts all steps over: for this one alone move "
        f"{step.config.run.dir} away"
    )


def report(steps: Sequence[Step], record: Record, config: RunConfig) -> None:
    """The table of all models whose evaluation is of this configuration; on the main rank."""
    current = record.current(steps)
    evaluated = {step.name: step.config.evaluation for step in current}
    results = {}
    for column, step in config.stage.columns.items():
        evaluation = evaluated.get(EVALUATE + step)
        if evaluation is not None:
            file = config.run.dir / (EVALUATE + step) / "eval" / f"{evaluation.name}.json"
            results[column] = json.loads(file.read_text())["suites"]
            confidence = evaluation.confidence
    if results:
        table = stage_table(results, confidence=confidence)
        write_stage_table(table, config.run.dir, title=f"{config.run.name}: from base to R1")
        print(f"\n{table.markdown()}\n\n{config.run.dir}/table.md, .txt, .json, .png", flush=True)
    left = [step.name for step in steps if step.name not in evaluated]
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
