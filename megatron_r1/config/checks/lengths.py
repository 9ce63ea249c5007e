"""What a model reads or writes fits it, and fits a micro-batch."""

from __future__ import annotations

from megatron_r1.config.data import DataConfig
from megatron_r1.config.evaluation import EvaluationConfig
from megatron_r1.config.model import ModelConfig
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.config.pipeline import EvaluationStageConfig
from megatron_r1.config.precision import PrecisionConfig
from megatron_r1.config.reward import RewardConfig
from megatron_r1.config.rollout import RolloutConfig
from megatron_r1.config.stage import (
    DpoStageConfig,
    ExamplesConfig,
    R1ZeroConfig,
    RmHelpfulConfig,
    StageConfig,
)
from megatron_r1.errors import ConfigError


def check_example_lengths(
    stage: StageConfig, model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig
) -> None:
    """The longest example fits the model and a micro-batch."""
    if not isinstance(stage, ExamplesConfig):
        return
    if stage.max_tokens > model.max_positions:
        raise ConfigError(
            f"stage.max_tokens = {stage.max_tokens} exceeds model.max_positions = "
            f"{model.max_positions}. Set it to that or less"
        )
    together = 2 if isinstance(stage, DpoStageConfig | RmHelpfulConfig) else 1
    if together * stage.max_tokens > parallel.packable_tokens(precision):
        pair = "2 x " if together == 2 else ""
        raise ConfigError(
            f"{pair}stage.max_tokens = {pair}{stage.max_tokens} exceeds "
            f"{_capacity(parallel, precision)}. Raise that or lower the other"
        )


def check_lengths(
    stage: StageConfig,
    data: DataConfig,
    rollout: RolloutConfig,
    reward: RewardConfig,
    model: ModelConfig,
    parallel: ParallelConfig,
    precision: PrecisionConfig,
    evaluation: EvaluationConfig,
) -> None:
    """A prompt with its longest response fits the model and a micro-batch."""
    if not stage.samples:
        return
    whose, prompt, response = "data", data.max_prompt_tokens, rollout.max_response_tokens
    if isinstance(stage, EvaluationStageConfig) and evaluation.max_prompt_tokens:
        whose, prompt = "evaluation", evaluation.max_prompt_tokens
    setting, way_out = "max_response_tokens", "lower one of the two"
    last_phase = stage.num_steps - 1 if isinstance(stage, R1ZeroConfig) else 0
    if rollout.response_tokens_after(last_phase) > response:
        setting += " x rollout.longer_factor"
        way_out += ", or set rollout.longer_from_step=0"
        response = rollout.response_tokens_after(last_phase)
    longest = f"{whose}.max_prompt_tokens + rollout.{setting} = {prompt} + {response}"
    if prompt + response > model.max_positions:
        raise ConfigError(
            f"{longest} exceeds model.max_positions = {model.max_positions}. {way_out.capitalize()}"
        )
    if "overlong" in reward.parts:
        _check_overlong(reward, rollout, response)
    if prompt + response > parallel.packable_tokens(precision):
        multiple = parallel.stream_multiple(precision)
        needed = -(-(prompt + response) // multiple) * multiple
        raise ConfigError(
            f"{longest} exceeds {_capacity(parallel, precision)}. Set that to {needed} or more, or "
            f"{way_out}"
        )


def _check_overlong(reward: RewardConfig, rollout: RolloutConfig, longest: int) -> None:
    """The penalty knows one length of a response, the run's last phase has `longest`."""
    own, sampled = reward.overlong.max_response_tokens, rollout.max_response_tokens
    if own != sampled:
        raise ConfigError(
            f"reward.overlong.max_response_tokens = {own} differs from rollout.max_response_tokens "
            f"= {sampled}. Set both to the same"
        )
    if longest != sampled:
        raise ConfigError(
            "the part overlong of the reward knows one length, and rollout.longer_from_step = "
            f"{rollout.longer_from_step} makes two. Set that to 0, or leave the part out"
        )


def _capacity(parallel: ParallelConfig, precision: PrecisionConfig) -> str:
    """The setting that rows have to fit, and how much of it they can take."""
    setting = parallel.max_tokens_per_microbatch
    usable = parallel.packable_tokens(precision)
    rounded = f", of which whole multiples of {parallel.stream_multiple(precision)}"
    rounded += f" are packed, {usable}"
    return f"parallel.max_tokens_per_microbatch = {setting}{rounded if usable < setting else ''}"
