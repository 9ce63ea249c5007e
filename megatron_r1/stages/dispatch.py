"""Which function runs a stage. Megatron-Core, seconds to import, is imported with the stage."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from megatron_r1.config.curation import CurateStageConfig
from megatron_r1.config.pipeline import EvaluationStageConfig, PipelineConfig, TinyWorldStageConfig
from megatron_r1.config.r1 import R1Stage2Config, R1Stage4Config
from megatron_r1.config.run import RunConfig
from megatron_r1.config.sft import R1Stage1Config, R1Stage3Config, SftConfig
from megatron_r1.config.stage import (
    DistillConfig,
    DpoStageConfig,
    R1ZeroConfig,
    RmHelpfulConfig,
    RmSafetyConfig,
    TinyBaseConfig,
    TinyR1ZeroConfig,
)
from megatron_r1.data.prompts import check_source
from megatron_r1.errors import ConfigError
from megatron_r1.rewards.mix import rules_of


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
            case R1Stage1Config():
                from megatron_r1.stages.r1_stage1 import run_r1_stage1

                run_r1_stage1(session, stage, run_dir, source)
            case R1Stage2Config():
                from megatron_r1.stages.r1_stage2 import run_r1_stage2

                run_r1_stage2(session, stage, run_dir, source)
            case R1Stage3Config():
                from megatron_r1.stages.r1_stage3 import run_r1_stage3

                run_r1_stage3(session, stage, run_dir, source)
            case R1Stage4Config():
                from megatron_r1.stages.r1_stage4 import run_r1_stage4

                run_r1_stage4(session, stage, run_dir, source)
            case R1ZeroConfig():
                from megatron_r1.stages.r1_zero import run_r1_zero

                run_r1_zero(session, stage, run_dir, source)
            case SftConfig():
                from megatron_r1.stages.sft import run_sft

                run_sft(session, stage, run_dir, source)
            case DpoStageConfig():
                from megatron_r1.stages.dpo import run_dpo

                run_dpo(session, stage, run_dir, source)
            case RmHelpfulConfig():
                from megatron_r1.stages.rm_helpful import run_rm_helpful

                run_rm_helpful(session, stage, run_dir, source)
            case RmSafetyConfig():
                from megatron_r1.stages.rm_safety import run_rm_safety

                run_rm_safety(session, stage, run_dir, source)
            case DistillConfig():
                from megatron_r1.stages.distill import run_distill

                run_distill(session, stage, run_dir, source)


def _with_model_of(config: RunConfig) -> RunConfig:
    """The shape of a model that is measured comes from its own files."""
    if config.model.init_from is None:
        raise ConfigError("stage=evaluation measures a model: set model.init_from=DIR")
    from megatron_r1.stages.evaluation import model_of

    return dataclasses.replace(config, model=model_of(Path(config.model.init_from)))
