"""The steps of a pipeline: each one's configuration, composed and checked before the first runs.

Needs neither torch nor Megatron-Core: a chain of jobs is planned on a login node.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from megatron_r1.config.cluster import SlurmConfig
from megatron_r1.config.load import load_config
from megatron_r1.config.overrides import quoted
from megatron_r1.config.paths import flatten
from megatron_r1.config.pipeline import (
    EVALUATE,
    EvaluationStageConfig,
    PipelineConfig,
    PipelineStepConfig,
)
from megatron_r1.config.run import RunConfig
from megatron_r1.errors import ConfigError, UserError

MODEL = "model"
"""Among a step's outputs: its newest checkpoint."""
_TAKEN = ("cluster", "telemetry", "judge")
_TAKEN_UNLESS_NAMED = ("parallel", "precision")
"""Groups of settings that a step has from its pipeline."""


@dataclass(frozen=True)
class Step:
    """One run of the pipeline, its configuration checked."""

    name: str
    config: RunConfig
    inputs: dict[str, str]
    """Setting -> step or ``step:file``."""
    makers: tuple[str, ...]
    """Steps of the pipeline among the sources of its inputs; the others are given."""
    outputs: tuple[str, ...]
    """Files of its folder that others read, or `MODEL`."""


def plan_steps(config: RunConfig, world_size: int) -> list[Step]:
    """Compose and check every step, before the first begins.

    Raises:
        ConfigError: a step's configuration is impossible, its input is no earlier step, or the
            pipeline is asked for what only its steps have.
    """
    stage = config.stage
    assert isinstance(stage, PipelineConfig), "asked of a pipeline alone"
    cluster = config.cluster
    if isinstance(cluster, SlurmConfig) and cluster.rollout_nodes:
        raise ConfigError(
            f"cluster.rollout_nodes = {cluster.rollout_nodes} for a pipeline in one job: its steps "
            "sample in folders of their own. Set it to 0, or launch the steps that want nodes of "
            "their own by themselves"
        )
    _check_not_read(config)
    wanted: dict[str, list[str]] = {name: [] for name in stage.steps}
    inputs = [stage.evaluation_inputs, *(settings.inputs for settings in stage.steps.values())]
    for sources in inputs:
        for source in sources.values():
            step, _, file = source.partition(":")
            wanted.setdefault(step, []).append(file or MODEL)
    for name in stage.columns.values():
        wanted.setdefault(name, []).append(MODEL)
    steps: list[Step] = []
    files_of = {source.partition(":")[0] for source in stage.evaluation_inputs.values()}
    unmeasured = [name for name in stage.given if name in stage.columns.values()]

    def measure() -> None:
        overrides = ["stage=evaluation", *stage.evaluation]
        for name in unmeasured:
            evaluation = PipelineStepConfig(
                overrides=overrides, inputs={**stage.evaluation_inputs, "model.init_from": name}
            )
            steps.append(_planned(config, EVALUATE + name, evaluation, steps, [], world_size))
        unmeasured.clear()

    for name, settings in stage.steps.items():
        steps.append(_planned(config, name, settings, steps, wanted[name], world_size))
        if name in stage.columns.values():
            unmeasured.append(name)
        # A model may be there before the files that it is measured on.
        if files_of <= {*stage.given, *(step.name for step in steps)}:
            measure()
    measure()
    return steps


def _check_not_read(config: RunConfig) -> None:
    """Settings that no step would take."""
    plain = load_config([f"stage={config.stage.name}"])
    groups = {field.name for field in dataclasses.fields(config)}
    ignored = []
    for group in sorted(groups - {"run", "stage", *_TAKEN, *_TAKEN_UNLESS_NAMED}):
        asked, default = (
            flatten(OmegaConf.to_container(OmegaConf.structured(getattr(found, group))))
            for found in (config, plain)
        )
        changed = [key for key in asked | default if asked.get(key) != default.get(key)]
        if "name" in changed:
            ignored.append(f"{group} = {asked['name']}")
        else:
            ignored += [f"{group}.{key} = {asked.get(key)}" for key in changed]
    if ignored:
        raise ConfigError(
            f"{', '.join(ignored[:4])}: no step of a pipeline takes this from it. Ask it of all of "
            """them, 'stage.every=["GROUP.NAME=VALUE"]', or of one, """
            """'+stage.changes.STEP=["GROUP.NAME=VALUE"]'"""
        )


def _planned(
    config: RunConfig,
    name: str,
    settings: PipelineStepConfig,
    before: Sequence[Step],
    wanted: Sequence[str],
    world_size: int,
) -> Step:
    stage = config.stage
    known = [*stage.given, *(step.name for step in before)]
    inputs = []
    for setting, source in settings.inputs.items():
        step, _, file = source.partition(":")
        if step not in known:
            raise ConfigError(
                f"stage.steps.{name}.inputs: {setting} = {source!r} names no step before it. "
                f"Those are: {', '.join(known) or 'none'}"
            )
        path = Path(stage.given[step]) if step in stage.given else config.run.dir / step
        inputs.append(f"{setting}={quoted(str(path / file))}")
    changes = [*stage.every, *stage.changes.get(name, [])]
    own = [*stage.common, *settings.overrides, *changes, *inputs]
    try:
        found = load_config([*own, f"run.seed={config.run.seed}"])
        run = dataclasses.replace(
            config.run, name=f"{config.run.name}/{name}", seed=found.run.seed, overwrite=False
        )
        taken: dict[str, Any] = {group: getattr(config, group) for group in _TAKEN}
        for group in _TAKEN_UNLESS_NAMED:
            if not any(o.lstrip("+").startswith((f"{group}.", f"{group}=")) for o in own):
                taken[group] = getattr(config, group)
        found = dataclasses.replace(found, run=run, **taken)
        if not isinstance(found.stage, EvaluationStageConfig):
            # An evaluation has the shape of its model, which is not there yet.
            found.validate(world_size)
    except UserError as error:
        raise type(error)(f"step {name}: {error}") from error
    outputs = dict.fromkeys([*wanted, *(["eval"] if name.startswith(EVALUATE) else [])])
    sources = {source.partition(":")[0] for source in settings.inputs.values()}
    inputs_of = {setting.lstrip("+"): source for setting, source in settings.inputs.items()}
    makers = tuple(step.name for step in before if step.name in sources)
    return Step(name, found, inputs_of, makers, tuple(outputs))
