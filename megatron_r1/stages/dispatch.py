"""Which function runs a stage. Megatron-Core, seconds to import, is imported with the stage."""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path

from megatron_r1.config.checks.stage import check_start
from megatron_r1.config.curation import CurateStageConfig
from megatron_r1.config.paths import flatten
from megatron_r1.config.pipeline import EvaluationStageConfig, PipelineConfig, TinyWorldStageConfig
from megatron_r1.config.plain import as_plain
from megatron_r1.config.r1 import R1Stage2Config, R1Stage4Config
from megatron_r1.config.run import RunConfig
from megatron_r1.config.sft import R1Stage1Config, R1Stage3Config, SftConfig
from megatron_r1.config.stage import (
    DistillConfig,
    DpoStageConfig,
    R1ZeroConfig,
    RmHelpfulConfig,
    RmSafetyConfig,
    StageConfig,
    TinyBaseConfig,
    TinyR1ZeroConfig,
)
from megatron_r1.data.prompts import check_source
from megatron_r1.platform.host import prepare
from megatron_r1.rewards.mix import rules_of

_BF16_MOMENTS = "optimizer.bf16_moments"
"""Ends the name of each such setting: stages and objectives may have optimizers of their own."""

_TRAINED_FROM_A_MODEL: dict[type[StageConfig], str] = {
    R1ZeroConfig: "r1_zero",
    R1Stage1Config: "r1_stage1",
    R1Stage2Config: "r1_stage2",
    R1Stage3Config: "r1_stage3",
    R1Stage4Config: "r1_stage4",
    SftConfig: "sft",
    DpoStageConfig: "dpo",
    RmHelpfulConfig: "rm_helpful",
    RmSafetyConfig: "rm_safety",
    DistillConfig: "distill",
}
"""Each is a module of `stages/`, and its `run_<name>` goes on from a model in the run directory."""


def check_run(config: RunConfig, world_size: int) -> None:
    """Find in a second what is wrong with a run.

    Raises:
        UserError: with the settings' paths, their values and a way out.
    """
    if isinstance(config.stage, EvaluationStageConfig):
        config = _with_model_of(config)
    config.validate(world_size)
    if isinstance(config.stage, PipelineConfig):
        return
    rules_of(config.reward)  # refuses unknown rules
    check_source(config.data)
    check_moments(config)


def check_moments(config: RunConfig) -> None:
    """Moments in bfloat16 need an optimizer that this device has; told before the first stage.

    Raises:
        ConfigError: with the setting, what it needs and a way out.
    """
    settings = flatten(as_plain(config))
    asked = [name for name, value in settings.items() if name.endswith(_BF16_MOMENTS) and value]
    if asked:
        device = prepare().device
        from megatron_r1.trainers.megatron_step import check_bf16_moments  # seconds to import

        check_bf16_moments(", ".join(asked), device)


def run_stage(config: RunConfig) -> None:
    """Run the configured stage in the run directory."""
    if isinstance(config.stage, PipelineConfig):
        from megatron_r1.stages.pipeline import run_pipeline

        run_pipeline(config)
        return
    source = Path(config.model.init_from) if config.model.init_from else None
    if isinstance(config.stage, EvaluationStageConfig):
        config = _with_model_of(config)
    from megatron_r1.stages.session import open_session

    with open_session(config) as session:
        session.say(f"{session.layout.describe()} on {session.host.device}; {session.run_dir}")
        stage, run_dir = config.stage, session.run_dir
        match stage:
            case EvaluationStageConfig():
                from megatron_r1.stages.evaluation import run_evaluation

                run_evaluation(session, source)
            case TinyWorldStageConfig():
                from megatron_r1.data.tiny_world.write import write_world
                from megatron_r1.parallel.exchange import on_main_rank

                on_main_rank(lambda: write_world(run_dir, stage.world) and None)
            case CurateStageConfig():
                from megatron_r1.parallel.exchange import on_main_rank
                from megatron_r1.stages.curate import run_curate

                session.say(on_main_rank(lambda: run_curate(stage, run_dir)))
            case TinyR1ZeroConfig():
                from megatron_r1.stages.tiny_r1_zero import run_tiny_r1_zero

                run_tiny_r1_zero(session, stage)
            case TinyBaseConfig():
                from megatron_r1.stages.tiny_base import run_tiny_base

                run_tiny_base(session, stage, run_dir)
            case _:
                name = _TRAINED_FROM_A_MODEL[type(stage)]
                module = importlib.import_module(f"megatron_r1.stages.{name}")
                getattr(module, f"run_{name}")(session, stage, run_dir, source)


def _with_model_of(config: RunConfig) -> RunConfig:
    """The shape of a model that is measured comes from its own files."""
    check_start(config.stage, config.model)
    from megatron_r1.stages.evaluation import model_of

    return dataclasses.replace(config, model=model_of(Path(config.model.init_from)))
