"""`conf/model/`: the shape of a policy. Names follow Hugging Face's of each family."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from megatron_r1.errors import ConfigError


class Head(Enum):
    """What a model ends in; the stage knows which, and the body is the same."""

    vocabulary = "vocabulary"
    """Logits of the next token: a language model."""
    scalar = "scalar"
    """One number for each token: a reward model or a critic."""


class RopeScaling(Enum):
    """How rotary frequencies are stretched beyond the pre-training context."""

    none = "none"
    yarn = "yarn"
    llama3 = "llama3"


@dataclass(kw_only=True)
class RopeConfig:
    """Rotary position embedding; YaRN (arXiv:2309.00071), Llama 3 (arXiv:2407.21783 section 3.4.2).

    Both stretch the wavelengths beyond `original_max_positions` by `factor`, and those in between
    in part.
    """

    theta: float = 10_000.0
    scaling: RopeScaling = RopeScaling.none
    factor: float = 1.0
    original_max_positions: int = 4096
    # YaRN alone. A pair is stretched in part between beta_fast and beta_slow turns in a context.
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    """cos and sin are multiplied by (0.1 mscale ln factor + 1) / (0.1 mscale_all_dim ln factor + 1)
    and latent attention's scores by that denominator's square."""
    mscale_all_dim: float = 1.0
    """1 in DeepSeek-V3; 0 is YaRN as the paper and Qwen have it."""
    # Llama 3 alone: the same two bounds, in wavelengths of the original context.
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name in ("scaling", "mscale", "mscale_all_dim"):
                continue
            if value <= 0:
                raise ConfigError(f"{name} must be > 0, got {value}")
        for low, high in (("beta_slow", "beta_fast"), ("low_freq_factor", "high_freq_factor")):
            if getattr(self, low) >= getattr(self, high):
                raise ConfigError(
                    f"{low} = {getattr(self, low)} is not below {high} = {getattr(self, high)}"
                )

    def settings_in_use(self) -> dict[str, Any]:
        """Those that the kind of scaling reads: others tell no two models apart."""
        names = ["theta", "scaling"]
        if self.scaling is not RopeScaling.none:
            names += ["factor", "original_max_positions"]
        if self.scaling is RopeScaling.yarn:
            names += ["beta_fast", "beta_slow", "mscale", "mscale_all_dim"]
        if self.scaling is RopeScaling.llama3:
            names += ["low_freq_factor", "high_freq_factor"]
        return {name: getattr(self, name) for name in names}


@dataclass(kw_only=True)
class ModelConfig:
    """What every family has."""

    name: str
    num_layers: int
    hidden_size: int
    ffn_hidden_size: int
    """Width of a dense SwiGLU block."""
    num_attention_heads: int
    vocab_size: int
    max_positions: int
    """Longest sequence, prompt and response together. All families have rotary positions, which no
    weight belongs to: `init_from` may be a model that was made for others, which is said where it
    was made for fewer."""
    norm_eps: float = 1e-6
    init_std: float = 0.02
    tie_embeddings: bool = False
    rope: RopeConfig = field(default_factory=RopeConfig)
    num_mtp_layers: int = 0
    """Layers that predict tokens further ahead (V3 report section 2.2), behind the last layer."""
    mtp_loss: float = 0.3
    """Weight of their loss in supervised training: 0.3, then 0.1 for the last third, in the V3
    report's section 4.2. Reinforcement learning leaves them as they are: see algo.mtp_loss."""
    init_from: str | None = None
    """Directory to start from: a run, one of its checkpoints, or a Hugging Face model.

    None starts from random weights.
    """

    def __post_init__(self) -> None:
        may_be_zero = {
            "num_dense_layers",
            "num_shared_experts",
            "num_mtp_layers",
            "mtp_loss",
            "bias_update_rate",
            "balance_loss",
        }
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value < 0 or (value == 0 and name not in may_be_zero):
                raise ConfigError(f"model.{name} must be > 0, got {value}")


@dataclass(kw_only=True)
class GroupedQueryConfig(ModelConfig):
    """Grouped-query attention: Qwen2.5, Qwen3 and Llama 3, which differ in two switches.

    Qwen2.5 (arXiv:2412.15115) has a bias on q, k and v, Qwen3 (arXiv:2505.09388) a norm on each
    head's query and key, Llama 3 (arXiv:2407.21783) neither.
    """

    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_attention_heads = {self.num_attention_heads} is not divisible by "
                f"model.num_kv_heads = {self.num_kv_heads}"
            )
        if self.qkv_bias and self.qk_norm:
            raise ConfigError(
                "model.qkv_bias and model.qk_norm are both true, and no Hugging Face architecture "
                "has both, so the model could not be exported. Set one of them to false"
            )


@dataclass(kw_only=True)
class MixtureConfig(ModelConfig):
    """Feed-forward blocks of routed experts, after some dense ones."""

    num_experts: int
    experts_per_token: int
    moe_ffn_hidden_size: int
    num_dense_layers: int = 0
    """First layers whose feed-forward block is dense."""
    balance_loss: float
    """Weight of the sequence-wise balance loss (V3 report Eq. 17)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts_per_token > self.num_experts:
            raise ConfigError(
                f"model.experts_per_token = {self.experts_per_token} exceeds "
                f"model.num_experts = {self.num_experts}"
            )
        if self.num_dense_layers > self.num_layers:
            raise ConfigError(
                f"model.num_dense_layers = {self.num_dense_layers} exceeds "
                f"model.num_layers = {self.num_layers}"
            )


@dataclass(kw_only=True)
class Qwen3MoeConfig(MixtureConfig, GroupedQueryConfig):
    """Qwen3's attention and softmax-routed experts, none of them shared (arXiv:2505.09388)."""

    qk_norm: bool = True
    normalize_weights: bool = True
    """The weights of a token's experts add up to 1."""
    balance_loss: float = 1e-3
    """Qwen3 was trained for balance over a global batch; here it is over each sequence, which no
    split of the batch changes. The 0.001 in its config.json would be 0.008 here: the loss that it
    weighs lacks Eq. 17's division by experts_per_token."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.qkv_bias or not self.qk_norm:
            raise ConfigError(
                f"model.qkv_bias = {self.qkv_bias} and model.qk_norm = {self.qk_norm}: Qwen3's "
                "mixture has norms on q and k and no bias, and Hugging Face knows no other. Leave "
                "both out"
            )


@dataclass(kw_only=True)
class DeepseekV3Config(MixtureConfig):
    """Multi-head latent attention and sigmoid-routed experts (arXiv:2412.19437)."""

    # Multi-head latent attention
    q_lora_rank: int | None
    """None: queries are projected from the hidden state directly (Moonlight)."""
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    # Mixture of experts
    num_expert_groups: int = 1
    groups_per_token: int = 1
    num_shared_experts: int = 1
    routed_scaling: float = 2.5
    bias_update_rate: float = 1e-3
    """Step of the auxiliary-loss-free balancing bias (V3 report section 4.2); 0 freezes it."""
    balance_loss: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_experts % self.num_expert_groups:
            raise ConfigError(
                f"model.num_experts = {self.num_experts} is not divisible by "
                f"model.num_expert_groups = {self.num_expert_groups}"
            )
        if self.groups_per_token > self.num_expert_groups:
            raise ConfigError(
                f"model.groups_per_token = {self.groups_per_token} exceeds "
                f"model.num_expert_groups = {self.num_expert_groups}"
            )
        one_group = self.num_expert_groups == 1
        if not one_group and self.experts_per_token != 2 * self.groups_per_token:
            raise ConfigError(
                f"model.experts_per_token = {self.experts_per_token} is not twice "
                f"model.groups_per_token = {self.groups_per_token}. A group counts as much as its "
                "best experts_per_token / groups_per_token experts, and other implementations of "
                "DeepSeek-V3 take 2 for granted"
            )
        chosen = self.groups_per_token * self.num_experts // self.num_expert_groups
        if self.experts_per_token > chosen:
            raise ConfigError(
                f"model.experts_per_token = {self.experts_per_token} exceeds the {chosen} experts "
                f"of {self.groups_per_token} groups"
            )
