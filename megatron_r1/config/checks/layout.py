"""A model can be split over so many ranks."""

from __future__ import annotations

from megatron_r1.config.model import (
    DeepseekV3Config,
    GroupedQueryConfig,
    MixtureConfig,
    ModelConfig,
)
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.config.precision import Fp8, PrecisionConfig
from megatron_r1.errors import ConfigError


def check_degrees(parallel: ParallelConfig, world_size: int) -> None:
    """The degrees divide the ranks that there are."""
    model_ranks = parallel.tensor * parallel.pipeline * parallel.context
    if world_size % model_ranks:
        raise ConfigError(
            f"parallel: tensor * pipeline * context = {parallel.tensor} * {parallel.pipeline} * "
            f"{parallel.context} = {model_ranks} does not divide the world size {world_size}. "
            f"Choose a product out of {_divisors(world_size)}, or start another number of processes"
        )
    expert_ranks = parallel.expert * parallel.expert_tensor * parallel.pipeline
    if world_size % expert_ranks:
        raise ConfigError(
            f"parallel: expert * expert_tensor * pipeline = {parallel.expert} * "
            f"{parallel.expert_tensor} * {parallel.pipeline} = {expert_ranks} does not divide the "
            f"world size {world_size}. Choose a product out of {_divisors(world_size)}, or start "
            "another number of processes"
        )


def check_model_fits_degrees(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig
) -> None:
    """A model's heads, layers, experts and widths can be split so; a teacher's too."""

    def check(what: str, value: int, setting: str, degree: int) -> None:
        if value % degree:
            raise ConfigError(
                f"{what} = {value} is not divisible by parallel.{setting} = {degree}. "
                f"Set parallel.{setting} to one of {_divisors(value)}"
            )

    check("model.num_attention_heads", model.num_attention_heads, "tensor", parallel.tensor)
    check("model.ffn_hidden_size", model.ffn_hidden_size, "tensor", parallel.tensor)
    _check_pipeline_split(model, parallel)
    if isinstance(model, MixtureConfig):
        check("model.num_experts", model.num_experts, "expert", parallel.expert)
        width = model.moe_ffn_hidden_size
        check("model.moe_ffn_hidden_size", width, "expert_tensor", parallel.expert_tensor)
        if parallel.tensor > 1 and not parallel.sequence_parallel:
            raise ConfigError(
                "parallel.sequence=false with parallel.tensor > 1 does not work with experts: "
                "Megatron-Core asks for sequence parallelism there. Leave parallel.sequence unset"
            )
    else:
        if parallel.expert > 1 or parallel.expert_tensor > 1:
            raise ConfigError(
                f"parallel.expert = {parallel.expert} and parallel.expert_tensor = "
                f"{parallel.expert_tensor} need a model with experts, and model.name = {model.name}"
                " has none. Set both to 1"
            )
    if isinstance(model, GroupedQueryConfig):
        check("model.num_kv_heads", model.num_kv_heads, "tensor", parallel.tensor)
    _check_gathered_widths(model, parallel, precision)


def _check_gathered_widths(
    model: ModelConfig, parallel: ParallelConfig, precision: PrecisionConfig
) -> None:
    """What tensor ranks gather in FP8 blocks for their linears is whole blocks wide."""
    if precision.fp8 is not Fp8.block or not parallel.sequence_parallel:
        return
    widths = ["hidden_size"]
    if isinstance(model, DeepseekV3Config):
        widths += ["q_lora_rank", "kv_lora_rank"]
    for name in widths:
        width = getattr(model, name) or 0  # q_lora_rank may be None
        if width % precision.gathered_multiple:
            ways = ["parallel.tensor=1"]
            if not isinstance(model, MixtureConfig):
                ways.append("parallel.sequence=false")
            ways.append("precision=fp8_block_sim, which computes the same anywhere")
            raise ConfigError(
                f"model.{name} = {width} with precision.fp8 = block and parallel.tensor = "
                f"{parallel.tensor}: under sequence parallelism Transformer Engine gathers this "
                f"width in FP8, and it has to be a multiple of {precision.gathered_multiple}. Set "
                + " or ".join(ways)
            )


def _check_pipeline_split(model: ModelConfig, parallel: ParallelConfig) -> None:
    """Every chunk of the pipeline has its layers."""
    chunks = (
        f"parallel.pipeline * parallel.virtual_pipeline = {parallel.pipeline} * "
        f"{parallel.virtual_pipeline} = {parallel.num_chunks}"
    )
    if model.num_layers < parallel.num_chunks:
        raise ConfigError(
            f"{chunks} exceeds model.num_layers = {model.num_layers}, and each chunk of the "
            f"pipeline has a layer at least. Lower one of the two to at most {model.num_layers} "
            "chunks"
        )
    if model.num_mtp_layers and model.tie_embeddings and parallel.pipeline > 1:
        raise ConfigError(
            f"model.num_mtp_layers = {model.num_mtp_layers} with model.tie_embeddings = true needs "
            f"parallel.pipeline = 1, and it is {parallel.pipeline}: Megatron-Core has no place for "
            "the tied weights of such a model's last stage. Set one of the two to 0 or false"
        )
    layers = parallel.pipeline_layers
    if layers is None:
        return
    if len(layers) != parallel.num_chunks or sum(layers) != model.num_layers or min(layers) < 1:
        raise ConfigError(
            f"parallel.pipeline_layers = {layers} must be {parallel.num_chunks} numbers ({chunks}) "
            f"of at least 1 that add up to model.num_layers = {model.num_layers}. Leave it out for "
            "a balanced split"
        )


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)
