"""What a stage asks of the groups beside it."""

from __future__ import annotations

from megatron_r1.config.algo import (
    AlgoConfig,
    DistillLogitsConfig,
    DistillSamplesConfig,
    DpoConfig,
    KlPenaltyConfig,
    ObjectiveConfig,
)
from megatron_r1.config.data import DataConfig, PromptSourceKind
from megatron_r1.config.model import ModelConfig
from megatron_r1.config.monitor import MonitorConfig
from megatron_r1.config.r1 import R1Stage2Config, R1Stage4Config
from megatron_r1.config.reward import RewardConfig
from megatron_r1.config.rollout import RolloutConfig
from megatron_r1.config.sft import CollectingConfig
from megatron_r1.config.stage import (
    DistillConfig,
    DpoStageConfig,
    ExamplesConfig,
    R1ZeroConfig,
    StageConfig,
    TinyBaseConfig,
    TinyR1ZeroConfig,
)
from megatron_r1.errors import ConfigError

_OBJECTIVES: dict[type[StageConfig], tuple[type[ObjectiveConfig], ...]] = {
    R1ZeroConfig: (AlgoConfig,),
    R1Stage2Config: (AlgoConfig,),
    R1Stage4Config: (AlgoConfig,),
    TinyR1ZeroConfig: (AlgoConfig,),
    DpoStageConfig: (DpoConfig,),
    DistillConfig: (DistillSamplesConfig, DistillLogitsConfig),
}
"""What a stage trains with; one that is not here asks no objective of `conf/algo/`."""


def check_objective(stage: StageConfig, algo: ObjectiveConfig) -> None:
    """The stage trains with it."""
    if isinstance(algo, _OBJECTIVES.get(type(stage), ObjectiveConfig)):
        return
    stages = [schema().name for schema, kinds in _OBJECTIVES.items() if isinstance(algo, kinds)]
    raise ConfigError(
        f"algo.name = {algo.name} is no objective of stage.name = {stage.name}. It is one of "
        f"stage={' or stage='.join(stages)}; leave algo= out to train with the stage's own"
    )


def check_start(stage: StageConfig, model: ModelConfig) -> None:
    """A stage that goes on from a model has one."""
    if stage.starts_from and model.init_from is None:
        raise ConfigError(
            f"stage={stage.name} starts from {stage.starts_from}: set model.init_from=DIR, a run, "
            "a checkpoint or a Hugging Face model. stage=tiny_base makes a small one"
        )


def check_examples(stage: StageConfig, algo: ObjectiveConfig) -> None:
    """Files, or a model that samples, are named; a teacher where the objective needs one."""
    if not isinstance(stage, ExamplesConfig):
        return
    if not stage.examples and not isinstance(stage, CollectingConfig):
        raise ConfigError("stage.examples is not set: name a JSONL file, stage.examples=FILE")
    if isinstance(stage, DistillConfig):
        if isinstance(algo, DistillLogitsConfig) and stage.teacher is None:
            raise ConfigError(
                f"algo.name = {algo.name} needs a teacher: set stage.teacher=DIR, or "
                "algo=distill_samples to learn from its responses alone"
            )
        if isinstance(algo, DistillSamplesConfig) and stage.teacher is not None:
            raise ConfigError(
                f"stage.teacher = {stage.teacher} has no meaning for algo.name = "
                f"{algo.name}. Leave it out, or set algo=distill_logits"
            )
    if isinstance(stage, CollectingConfig) and not stage.collect.source:
        raise ConfigError(
            "stage.collect.source is not set: name the model that samples, "
            "stage.collect.source=DIR, a run, a checkpoint or a Hugging Face model"
        )


def check_tiny(stage: StageConfig, data: DataConfig, model: ModelConfig) -> None:
    """What a tiny base would only find out after minutes, or silently ignore."""
    if isinstance(stage, TinyR1ZeroConfig):
        if stage.evaluation.num_problems > data.heldout_problems:
            raise ConfigError(
                f"stage.evaluation.num_problems = {stage.evaluation.num_problems} exceeds "
                f"data.heldout_problems = {data.heldout_problems}. Lower the one or raise "
                "the other"
            )
    if isinstance(stage, TinyBaseConfig | TinyR1ZeroConfig):
        base = stage.base if isinstance(stage, TinyR1ZeroConfig) else stage
        reads_file = base.documents is not None
        if data.source is not PromptSourceKind.reasoning_gym and not reads_file:
            raise ConfigError(
                f"stage.name = {stage.name} trains its base on a synthetic corpus, which is "
                "written for data=chain_sum. For other data use stage=r1_zero model.init_from=DIR"
            )
        for setting, value in (
            ("model.init_from", model.init_from),
            ("data.tokenizer", data.tokenizer),
        ):
            if value is not None:
                raise ConfigError(
                    f"{setting} = {value} has no meaning for stage.name = {stage.name}, which "
                    "makes its own base model and tokenizer. Leave it out, or use stage=r1_zero"
                )


def check_general(stage: StageConfig, reward: RewardConfig) -> None:
    """What stage 4 asks of its reward."""
    if not isinstance(stage, R1Stage4Config):
        return
    if not reward.mixes:
        raise ConfigError(
            "stage=r1_stage4 tells general prompts from others by reward.mixes, which is empty. "
            "Use reward=r1_stage4, or name the general data sets' own weights there"
        )
    twice = sorted(reward.models.keys() & reward.schedules.keys())
    if twice:
        raise ConfigError(
            f"reward.schedules names {', '.join(twice)}, and in stage=r1_stage4 reward models "
            "count in the last stage.preference_steps updates. Leave them out there, as "
            "conf/reward/r1_stage4.yaml does"
        )


def check_algo(stage: StageConfig, algo: ObjectiveConfig, rollout: RolloutConfig) -> None:
    """What an objective asks of the stage that trains with it."""
    if isinstance(stage, TinyR1ZeroConfig):
        stage = stage.zero
    if not isinstance(stage, R1ZeroConfig):
        return  # no rollouts
    if isinstance(algo, KlPenaltyConfig) and stage.steps_per_phase < 2:
        raise ConfigError(
            f"algo.name = {algo.name} adapts its coefficient to how far the updates of one "
            "phase move the policy, and with steps_per_phase = 1 there is nothing to measure. Set "
            "stage.steps_per_phase to 2 or more"
        )
    cache, longest = algo.overlong_cache_tokens, rollout.max_response_tokens
    if cache > longest:
        raise ConfigError(
            f"algo.overlong_cache_tokens = {cache} exceeds rollout.max_response_tokens = {longest}."
            f" Set it below that; DAPO's is a fifth, {longest // 5}"
        )


def check_monitor(
    stage: StageConfig,
    monitor: MonitorConfig,
    reward: RewardConfig,
    algo: ObjectiveConfig,
    data: DataConfig,
) -> None:
    """What the monitor is told to watch is there."""
    if isinstance(stage, ExamplesConfig):
        return  # there is none
    parts = reward.parts
    needed = [*monitor.learned, monitor.verified] if monitor.learned else []
    missing = [part for part in needed if part not in parts]
    if missing:
        raise ConfigError(
            f"monitor.learned = {monitor.learned} with monitor.verified = {monitor.verified} "
            f"watches {', '.join(missing)}, which reward.weights and reward.mixes lack; they have "
            f"{', '.join(parts)}. Add it there; with weight 0 it is scored and not trained on"
        )
    if monitor.heldout_prompts > data.heldout_problems:
        raise ConfigError(
            f"monitor.heldout_prompts = {monitor.heldout_prompts} exceeds data.heldout_problems = "
            f"{data.heldout_problems}. Lower the one or raise the other"
        )
    if monitor.kl_budget > 0 and not isinstance(algo, AlgoConfig):
        raise ConfigError(
            f"monitor.kl_budget = {monitor.kl_budget} watches how far rollouts lead from a "
            f"reference, and algo.name = {algo.name} has no rollouts. Set it to 0, or leave "
            "algo= out"
        )
    if monitor.kl_budget > 0 and algo.kl_beta == 0:
        raise ConfigError(
            f"monitor.kl_budget = {monitor.kl_budget} needs a reference policy, and algo.kl_beta = "
            "0 keeps none. Set algo.kl_beta to a small number, or the budget to 0"
        )
