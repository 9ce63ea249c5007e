"""What a whole run is: every group of `conf/`, and the checks that span them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from megatron_r1.config.algo import (
    AlgoConfig,
    DistillLogitsConfig,
    DistillSamplesConfig,
    DpoConfig,
    KlPenaltyConfig,
    ObjectiveConfig,
)
from megatron_r1.config.cluster import ClusterConfig, SlurmConfig
from megatron_r1.config.data import DataConfig, PromptSourceKind
from megatron_r1.config.evaluation import EvaluationConfig
from megatron_r1.config.judge import JudgeConfig
from megatron_r1.config.model import (
    GroupedQueryConfig,
    MixtureConfig,
    ModelConfig,
    Qwen3MoeConfig,
)
from megatron_r1.config.monitor import MonitorConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.config.pipeline import PipelineConfig
from megatron_r1.config.precision import DType, PrecisionConfig
from megatron_r1.config.r1 import R1Stage2Config, R1Stage4Config
from megatron_r1.config.reward import RewardConfig
from megatron_r1.config.rollout import RolloutConfig, SglangConfig, WeightsBy
from megatron_r1.config.sft import CollectingConfig
from megatron_r1.config.stage import (
    DistillConfig,
    DpoStageConfig,
    ExamplesConfig,
    R1ZeroConfig,
    RmHelpfulConfig,
    StageConfig,
    TinyBaseConfig,
    TinyR1ZeroConfig,
)
from megatron_r1.config.telemetry import TelemetryConfig
from megatron_r1.errors import ConfigError

_SGLANG_MASK_TOKENS = 4096
"""SGLang 0.5.23, where sampling-mask-max-tokens says nothing else."""


@dataclass(kw_only=True)
class RunIdentity:
    """Who this run is. The name is the identity: starting it again resumes it."""

    name: str = "r1_zero"
    """`conf/config.yaml` makes it the stage's, so that no stage goes on in another's folder."""
    root: str = "runs"
    seed: int = 1
    overwrite: bool = False
    """Delete what an earlier run of this name left, and start over."""

    def __post_init__(self) -> None:
        parts = Path(self.name).parts
        if not parts or Path(self.name).is_absolute() or ".." in parts:
            raise ConfigError(f"run.name must name a folder inside run.root, got {self.name!r}")
        if not 0 <= self.seed < 2**31:
            raise ConfigError(f"run.seed must be in [0, 2^31), got {self.seed}")

    @property
    def dir(self) -> Path:
        return Path(self.root) / self.name


@dataclass(kw_only=True)
class RunConfig:
    """The resolved configuration: printed, saved beside the run, never written to."""

    run: RunIdentity = field(default_factory=RunIdentity)
    stage: StageConfig
    model: ModelConfig
    parallel: ParallelConfig
    algo: ObjectiveConfig
    reward: RewardConfig
    judge: JudgeConfig
    monitor: MonitorConfig
    data: DataConfig
    rollout: RolloutConfig
    evaluation: EvaluationConfig
    precision: PrecisionConfig
    optimizer: OptimizerConfig
    cluster: ClusterConfig
    telemetry: TelemetryConfig

    def validate(self, world_size: int) -> None:
        """Check what spans groups, before anything is built.

        Raises:
            ConfigError: with the settings' paths, their values and a way out.
        """
        if isinstance(self.stage, PipelineConfig):
            return  # every step is checked by itself
        self.validate_layout(world_size)
        _check_objective(self)
        _check_examples(self)
        _check_lengths(self)
        _check_stage(self)
        _check_general(self)
        _check_algo(self)
        _check_monitor(self)
        _check_servers(self)
        _check_waiting(self, world_size)
        check_start(self.stage, self.model)

    def validate_layout(self, world_size: int) -> None:
        """Check that the model can be laid out over so many ranks.

        Raises:
            ConfigError: with the settings' paths, their values and a way out.
        """
        _check_degrees(self.parallel, world_size)
        check_model_fits_degrees(self.model, self.parallel)


def check_start(stage: StageConfig, model: ModelConfig) -> None:
    """A stage that goes on from a model has one."""
    if stage.starts_from and model.init_from is None:
        raise ConfigError(
            f"stage={stage.name} starts from {stage.starts_from}: set model.init_from=DIR, a run, "
            "a checkpoint or a Hugging Face model. stage=tiny_base makes a small one"
        )


_OBJECTIVES: dict[type[StageConfig], tuple[type[ObjectiveConfig], ...]] = {
    R1ZeroConfig: (AlgoConfig,),
    R1Stage2Config: (AlgoConfig,),
    R1Stage4Config: (AlgoConfig,),
    TinyR1ZeroConfig: (AlgoConfig,),
    DpoStageConfig: (DpoConfig,),
    DistillConfig: (DistillSamplesConfig, DistillLogitsConfig),
}
"""What a stage trains with; one that is not here asks no objective of `conf/algo/`."""


def _check_objective(config: RunConfig) -> None:
    stage, algo = config.stage, config.algo
    if isinstance(algo, _OBJECTIVES.get(type(stage), ObjectiveConfig)):
        return
    stages = [schema().name for schema, kinds in _OBJECTIVES.items() if isinstance(algo, kinds)]
    raise ConfigError(
        f"algo.name = {algo.name} is no objective of stage.name = {stage.name}. It is one of "
        f"stage={' or stage='.join(stages)}; leave algo= out to train with the stage's own"
    )


def _check_examples(config: RunConfig) -> None:
    """Files, or a model that samples, are named; the longest example fits the model and a
    micro-batch."""
    stage = config.stage
    if not isinstance(stage, ExamplesConfig):
        return
    if not stage.examples and not isinstance(stage, CollectingConfig):
        raise ConfigError("stage.examples is not set: name a JSONL file, stage.examples=FILE")
    if isinstance(stage, DistillConfig):
        if isinstance(config.algo, DistillLogitsConfig) and stage.teacher is None:
            raise ConfigError(
                f"algo.name = {config.algo.name} needs a teacher: set stage.teacher=DIR, or "
                "algo=distill_samples to learn from its responses alone"
            )
        if isinstance(config.algo, DistillSamplesConfig) and stage.teacher is not None:
            raise ConfigError(
                f"stage.teacher = {stage.teacher} has no meaning for algo.name = "
                f"{config.algo.name}. Leave it out, or set algo=distill_logits"
            )
    if stage.max_tokens > config.model.max_positions:
        raise ConfigError(
            f"stage.max_tokens = {stage.max_tokens} exceeds model.max_positions = "
            f"{config.model.max_positions}. Set it to that or less"
        )
    together = 2 if isinstance(stage, DpoStageConfig | RmHelpfulConfig) else 1
    if together * stage.max_tokens > config.parallel.packable_tokens(config.precision):
        pair = "2 x " if together == 2 else ""
        raise ConfigError(
            f"{pair}stage.max_tokens = {pair}{stage.max_tokens} exceeds {_capacity(config)}. Raise "
            "that or lower the other"
        )
    if isinstance(stage, CollectingConfig) and not stage.collect.source:
        raise ConfigError(
            "stage.collect.source is not set: name the model that samples, "
            "stage.collect.source=DIR, a run, a checkpoint or a Hugging Face model"
        )


def _check_overlong(config: RunConfig, longest: int) -> None:
    """The penalty knows one length of a response, the run's last phase has `longest`."""
    own, sampled = config.reward.overlong.max_response_tokens, config.rollout.max_response_tokens
    if own != sampled:
        raise ConfigError(
            f"reward.overlong.max_response_tokens = {own} differs from rollout.max_response_tokens "
            f"= {sampled}. Set both to the same"
        )
    if longest != sampled:
        raise ConfigError(
            "the part overlong of the reward knows one length, and rollout.longer_from_step = "
            f"{config.rollout.longer_from_step} makes two. Set that to 0, or leave the part out"
        )


def _check_lengths(config: RunConfig) -> None:
    """A prompt with its longest response fits the model and a micro-batch."""
    if not config.stage.samples:
        return
    prompt, response = config.data.max_prompt_tokens, config.rollout.max_response_tokens
    setting, way_out = "max_response_tokens", "lower one of the two"
    last_phase = config.stage.num_steps - 1 if isinstance(config.stage, R1ZeroConfig) else 0
    if config.rollout.response_tokens_after(last_phase) > response:
        setting += " x rollout.longer_factor"
        way_out += ", or set rollout.longer_from_step=0"
        response = config.rollout.response_tokens_after(last_phase)
    longest = f"data.max_prompt_tokens + rollout.{setting} = {prompt} + {response}"
    if prompt + response > config.model.max_positions:
        raise ConfigError(
            f"{longest} exceeds model.max_positions = {config.model.max_positions}. "
            f"{way_out.capitalize()}"
        )
    if "overlong" in config.reward.parts:
        _check_overlong(config, response)
    if prompt + response > config.parallel.packable_tokens(config.precision):
        multiple = config.parallel.stream_multiple(config.precision)
        needed = -(-(prompt + response) // multiple) * multiple
        raise ConfigError(
            f"{longest} exceeds {_capacity(config)}. Set that to {needed} or more, or {way_out}"
        )


def _capacity(config: RunConfig) -> str:
    """The setting that rows have to fit, and how much of it they can take."""
    setting = config.parallel.max_tokens_per_microbatch
    usable = config.parallel.packable_tokens(config.precision)
    rounded = f", of which whole multiples of {config.parallel.stream_multiple(config.precision)}"
    rounded += f" are packed, {usable}"
    return f"parallel.max_tokens_per_microbatch = {setting}{rounded if usable < setting else ''}"


def _check_stage(config: RunConfig) -> None:
    """What a stage would only find out after minutes, or silently ignore."""
    stage = config.stage
    if isinstance(stage, TinyR1ZeroConfig):
        if stage.evaluation.num_problems > config.data.heldout_problems:
            raise ConfigError(
                f"stage.evaluation.num_problems = {stage.evaluation.num_problems} exceeds "
                f"data.heldout_problems = {config.data.heldout_problems}. Lower the one or raise "
                "the other"
            )
    if isinstance(stage, TinyBaseConfig | TinyR1ZeroConfig):
        base = stage.base if isinstance(stage, TinyR1ZeroConfig) else stage
        reads_file = base.documents is not None
        if config.data.source is not PromptSourceKind.reasoning_gym and not reads_file:
            raise ConfigError(
                f"stage.name = {stage.name} trains its base on a synthetic corpus, which is "
                "written for data=chain_sum. For other data use stage=r1_zero model.init_from=DIR"
            )
        for setting, value in (
            ("model.init_from", config.model.init_from),
            ("data.tokenizer", config.data.tokenizer),
        ):
            if value is not None:
                raise ConfigError(
                    f"{setting} = {value} has no meaning for stage.name = {stage.name}, which "
                    "makes its own base model and tokenizer. Leave it out, or use stage=r1_zero"
                )


def _check_general(config: RunConfig) -> None:
    """What stage 4 asks of its reward."""
    reward = config.reward
    if not isinstance(config.stage, R1Stage4Config):
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


def _check_algo(config: RunConfig) -> None:
    """What an objective asks of the stage that trains with it."""
    stage = config.stage.zero if isinstance(config.stage, TinyR1ZeroConfig) else config.stage
    if not isinstance(stage, R1ZeroConfig):
        return  # no rollouts
    if isinstance(config.algo, KlPenaltyConfig) and stage.steps_per_phase < 2:
        raise ConfigError(
            f"algo.name = {config.algo.name} adapts its coefficient to how far the updates of one "
            "phase move the policy, and with steps_per_phase = 1 there is nothing to measure. Set "
            "stage.steps_per_phase to 2 or more"
        )
    cache, longest = config.algo.overlong_cache_tokens, config.rollout.max_response_tokens
    if cache > longest:
        raise ConfigError(
            f"algo.overlong_cache_tokens = {cache} exceeds rollout.max_response_tokens = {longest}."
            f" Set it below that; DAPO's is a fifth, {longest // 5}"
        )


def _check_monitor(config: RunConfig) -> None:
    """What the monitor is told to watch is there."""
    if isinstance(config.stage, ExamplesConfig):
        return  # there is none
    monitor, parts = config.monitor, config.reward.parts
    needed = [*monitor.learned, monitor.verified] if monitor.learned else []
    missing = [part for part in needed if part not in parts]
    if missing:
        raise ConfigError(
            f"monitor.learned = {monitor.learned} with monitor.verified = {monitor.verified} "
            f"watches {', '.join(missing)}, which reward.weights and reward.mixes lack; they have "
            f"{', '.join(parts)}. Add it there; with weight 0 it is scored and not trained on"
        )
    if monitor.heldout_prompts > config.data.heldout_problems:
        raise ConfigError(
            f"monitor.heldout_prompts = {monitor.heldout_prompts} exceeds data.heldout_problems = "
            f"{config.data.heldout_problems}. Lower the one or raise the other"
        )
    if monitor.kl_budget > 0 and not isinstance(config.algo, AlgoConfig):
        raise ConfigError(
            f"monitor.kl_budget = {monitor.kl_budget} watches how far rollouts lead from a "
            f"reference, and algo.name = {config.algo.name} has no rollouts. Set it to 0, or leave "
            "algo= out"
        )
    if monitor.kl_budget > 0 and config.algo.kl_beta == 0:
        raise ConfigError(
            f"monitor.kl_budget = {monitor.kl_budget} needs a reference policy, and algo.kl_beta = "
            "0 keeps none. Set algo.kl_beta to a small number, or the budget to 0"
        )


def _check_servers(config: RunConfig) -> None:
    """Who serves, what is asked of them, and what SGLang would compute wrongly without a word."""
    model, cluster = config.model, config.cluster
    rollout_nodes = cluster.rollout_nodes if isinstance(cluster, SlurmConfig) else 0
    if not config.stage.samples:
        if rollout_nodes:
            raise ConfigError(
                f"cluster.rollout_nodes = {rollout_nodes} are nodes for servers, and stage.name = "
                f"{config.stage.name} asks none. Leave it out"
            )
        return
    if not isinstance(config.rollout, SglangConfig):
        if rollout_nodes:
            raise ConfigError(
                f"cluster.rollout_nodes = {rollout_nodes}, and rollout.name = "
                f"{config.rollout.name} has no servers. Set rollout=sglang, or leave it out"
            )
        if getattr(config.algo, "keep_sampling_masks", False) and config.rollout.truncates:
            raise ConfigError(
                f"algo.keep_sampling_masks = true with rollout.top_p = {config.rollout.top_p} and "
                f"rollout.top_k = {config.rollout.top_k} needs rollout=sglang: in-process decoding "
                "does not tell what it left to choose from. Set it to false, or top_p=1 and top_k=0"
            )
        return
    if rollout_nodes and config.rollout.urls:
        raise ConfigError(
            f"cluster.rollout_nodes = {rollout_nodes} nodes start servers, and rollout.urls names "
            "some that run already. Leave one of them out"
        )
    if rollout_nodes and config.rollout.weights_by is WeightsBy.shared_memory:
        raise ConfigError(
            f"rollout.weights_by = shared_memory with cluster.rollout_nodes = {rollout_nodes}: "
            "servers on other nodes do not share the trainer's memory. Set weights_by=collective"
        )
    dtype = config.precision.dtype
    if config.rollout.fp8 and dtype is not DType.bfloat16:
        raise ConfigError(
            f"rollout.fp8 = true with precision.dtype = {dtype.value}: what servers do not hold in "
            "FP8 they hold in bfloat16, as the trainer has to. Set precision=bf16, or fp8=false"
        )
    corrects = isinstance(config.algo, AlgoConfig) and config.algo.rollout_correction_cap > 0
    if config.rollout.steps_ahead and not corrects:
        raise ConfigError(
            f"rollout.steps_ahead = {config.rollout.steps_ahead} samples from older weights than "
            "those that are trained, and algo.rollout_correction_cap = 0 takes no account of it. "
            "Set the cap, 2.0 as in algo=grpo_stable, or steps_ahead to 0"
        )
    rewrites = config.rollout.start_files_every == 1 or (
        config.rollout.weights_by is WeightsBy.directory
    )
    if isinstance(config.algo, AlgoConfig) and not (rewrites or config.rollout.urls or corrects):
        raise ConfigError(
            f"rollout.start_files_every = {config.rollout.start_files_every}: a server that has to "
            "be started again samples from older weights than those that are trained, and "
            "algo.rollout_correction_cap = 0 takes no account of it. Set the cap, 2.0 as in "
            "algo=grpo_stable, or start_files_every to 1"
        )
    if isinstance(config.algo, AlgoConfig):
        _check_asked_of_engine(config.algo, config.rollout, isinstance(model, MixtureConfig))
    _check_masks(config.rollout, model.vocab_size)
    if isinstance(model, Qwen3MoeConfig) and model.num_dense_layers:
        raise ConfigError(
            f"model.num_dense_layers = {model.num_dense_layers} with rollout.name = sglang: SGLang "
            "0.5.23 gives every layer of a Qwen3-MoE experts, and leaves those of dense layers "
            "unset. Set it to 0, as in all published models, or use rollout=inprocess"
        )


def _check_waiting(config: RunConfig, world_size: int) -> None:
    """What the main rank and the leaders allow servers is over before the other ranks, which wait
    for them in a collective, give up."""
    rollout, waiting_s = config.rollout, 60 * config.cluster.timeout_minutes
    if not config.stage.samples or not isinstance(rollout, SglangConfig) or world_size == 1:
        return
    for name in ("start_timeout_s", "publish_timeout_s", "give_up_s"):
        limit_s = getattr(rollout, name)
        if limit_s >= waiting_s:
            raise ConfigError(
                f"rollout.{name} = {limit_s} is no less than cluster.timeout_minutes = "
                f"{config.cluster.timeout_minutes} ({waiting_s:.0f} s): ranks that wait meanwhile "
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


def _divisors(number: int) -> str:
    return ", ".join(str(d) for d in range(1, number + 1) if number % d == 0)


def _check_degrees(parallel: ParallelConfig, world_size: int) -> None:
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


def _check_pipeline_split(model: ModelConfig, parallel: ParallelConfig) -> None:
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


def check_model_fits_degrees(model: ModelConfig, parallel: ParallelConfig) -> None:
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
