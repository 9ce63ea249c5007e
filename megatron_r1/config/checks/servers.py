"""Who serves rollouts, what is asked of them, and how long ranks wait for them."""

from __future__ import annotations

from megatron_r1.config.algo import AlgoConfig, ObjectiveConfig
from megatron_r1.config.cluster import ClusterConfig, SlurmConfig
from megatron_r1.config.model import MixtureConfig, ModelConfig, Qwen3MoeConfig
from megatron_r1.config.precision import DType, PrecisionConfig
from megatron_r1.config.rollout import RolloutConfig, SglangConfig, WeightsBy
from megatron_r1.config.stage import StageConfig
from megatron_r1.errors import ConfigError

_SGLANG_MASK_TOKENS = 4096
"""SGLang 0.5.23, where sampling-mask-max-tokens says nothing else."""


def check_servers(
    stage: StageConfig,
    algo: ObjectiveConfig,
    model: ModelConfig,
    rollout: RolloutConfig,
    precision: PrecisionConfig,
    cluster: ClusterConfig,
) -> None:
    """Who serves, what is asked of them, and what SGLang would compute wrongly without a word."""
    rollout_nodes = cluster.rollout_nodes if isinstance(cluster, SlurmConfig) else 0
    if not stage.samples:
        if rollout_nodes:
            raise ConfigError(
                f"cluster.rollout_nodes = {rollout_nodes} are nodes for servers, and stage.name = "
                f"{stage.name} asks none. Leave it out"
            )
        return
    if not isinstance(rollout, SglangConfig):
        if rollout_nodes:
            raise ConfigError(
                f"cluster.rollout_nodes = {rollout_nodes}, and rollout.name = "
                f"{rollout.name} has no servers. Set rollout=sglang, or leave it out"
            )
        if getattr(algo, "keep_sampling_masks", False) and rollout.truncates:
            raise ConfigError(
                f"algo.keep_sampling_masks = true with rollout.top_p = {rollout.top_p} and "
                f"rollout.top_k = {rollout.top_k} needs rollout=sglang: in-process decoding "
                "does not tell what it left to choose from. Set it to false, or top_p=1 and top_k=0"
            )
        return
    if rollout_nodes and rollout.urls:
        raise ConfigError(
            f"cluster.rollout_nodes = {rollout_nodes} nodes start servers, and rollout.urls names "
            "some that run already. Leave one of them out"
        )
    if rollout_nodes and rollout.weights_by is WeightsBy.shared_memory:
        raise ConfigError(
            f"rollout.weights_by = shared_memory with cluster.rollout_nodes = {rollout_nodes}: "
            "servers on other nodes do not share the trainer's memory. Set weights_by=collective"
        )
    dtype = precision.dtype
    if rollout.fp8 and dtype is not DType.bfloat16:
        raise ConfigError(
            f"rollout.fp8 = true with precision.dtype = {dtype.value}: what servers do not hold in "
            "FP8 they hold in bfloat16, as the trainer has to. Set precision=bf16, or fp8=false"
        )
    corrects = isinstance(algo, AlgoConfig) and algo.rollout_correction_cap > 0
    if rollout.steps_ahead and not corrects:
        raise ConfigError(
            f"rollout.steps_ahead = {rollout.steps_ahead} samples from older weights than "
            "those that are trained, and algo.rollout_correction_cap = 0 takes no account of it. "
            "Set the cap, 2.0 as in algo=grpo_stable, or steps_ahead to 0"
        )
    rewrites = rollout.start_files_every == 1 or (rollout.weights_by is WeightsBy.directory)
    if isinstance(algo, AlgoConfig) and not (rewrites or rollout.urls or corrects):
        raise ConfigError(
            f"rollout.start_files_every = {rollout.start_files_every}: a server that has to "
            "be started again samples from older weights than those that are trained, and "
            "algo.rollout_correction_cap = 0 takes no account of it. Set the cap, 2.0 as in "
            "algo=grpo_stable, or start_files_every to 1"
        )
    if isinstance(algo, AlgoConfig):
        _check_asked_of_engine(algo, rollout, isinstance(model, MixtureConfig))
    _check_masks(rollout, model.vocab_size)
    if isinstance(model, Qwen3MoeConfig) and model.num_dense_layers:
        raise ConfigError(
            f"model.num_dense_layers = {model.num_dense_layers} with rollout.name = sglang: SGLang "
            "0.5.23 gives every layer of a Qwen3-MoE experts, and leaves those of dense layers "
            "unset. Set it to 0, as in all published models, or use rollout=inprocess"
        )


def check_waiting(
    stage: StageConfig, rollout: RolloutConfig, cluster: ClusterConfig, world_size: int
) -> None:
    """What the main rank and the leaders allow servers is over before the other ranks, which wait
    for them in a collective, give up."""
    waiting_s = 60 * cluster.timeout_minutes
    if not stage.samples or not isinstance(rollout, SglangConfig) or world_size == 1:
        return
    for name in ("start_timeout_s", "publish_timeout_s", "give_up_s"):
        limit_s = getattr(rollout, name)
        if limit_s >= waiting_s:
            raise ConfigError(
                f"rollout.{name} = {limit_s} is no less than cluster.timeout_minutes = "
                f"{cluster.timeout_minutes} ({waiting_s:.0f} s): ranks that wait meanwhile "
                "would end the job before a server is given up. Lower the one or raise the other"
            )


def _check_asked_of_engine(algo: AlgoConfig, rollout: SglangConfig, has_experts: bool) -> None:
    """What the objective needs to know of a response, the engine is asked for."""
    for needs, setting, asks in (
        ("replay_routing", "routed_experts", rollout.routed_experts or not has_experts),
        ("keep_sampling_masks", "sampling_masks", rollout.sampling_masks),
    ):
        if getattr(algo, needs) and not asks:
            raise ConfigError(
                f"algo.{needs} = true needs what rollout.{setting} = false does not ask the engine "
                f"for. Set both to the same"
            )


def _check_masks(rollout: SglangConfig, vocab_size: int) -> None:
    """SGLang tells which tokens were left of as many as it has made room for."""
    room = int(rollout.server_args.get("sampling-mask-max-tokens", _SGLANG_MASK_TOKENS))
    if rollout.sampling_masks and rollout.truncates and (rollout.top_k or vocab_size) > room:
        raise ConfigError(
            f"rollout.sampling_masks = true with rollout.top_p = {rollout.top_p} and rollout.top_k "
            f"= {rollout.top_k}: of {vocab_size} tokens more than {room} may be left, and SGLang "
            f"refuses that. Set top_k to at most {room}, or give servers more room with "
            "+rollout.server_args.sampling-mask-max-tokens"
        )
