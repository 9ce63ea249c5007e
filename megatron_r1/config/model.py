"""`conf/model/`: the shape of a policy. Names follow Hugging Face's of each family."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from megatron_r1.errors import ConfigError


class RopeScaling(Enum):
    """How rotary frequencies are stretched beyond the pre-training context."""

    none = "none"
    yarn = "yarn"


@dataclass(kw_only=True)
class RopeConfig:
    """Rotary position embedding; YaRN as DeepSeek-V3 uses it (arXiv:2309.00071)."""

    theta: float = 10_000.0
    scaling: RopeScaling = RopeScaling.none
    factor: float = 1.0
    original_max_positions: int = 4096
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float = 1.0
    mscale_all_dim: float = 1.0

    def __post_init__(self) -> None:
        for name in ("theta", "factor", "original_max_positions", "beta_fast", "beta_slow"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")


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
    """Longest sequence, prompt and response together."""
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
    """Directory of a checkpoint to start from; None starts from random weights."""

    def __post_init__(self) -> None:
        may_be_zero = {"num_dense_layers", "num_shared_experts", "bias_update_rate", "balance_loss"}
        may_be_zero |= {"num_mtp_layers", "mtp_loss"}
        for name, value in vars(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                continue
            if value < 0 or (value == 0 and name not in may_be_zero):
                raise ConfigError(f"model.{name} must be > 0, got {value}")


@dataclass(kw_only=True)
class DeepseekV3Config(ModelConfig):
    """Multi-head latent attention and sigmoid-routed experts (arXiv:2412.19437)."""

    # Multi-head latent attention
    q_lora_rank: int
    kv_lora_rank: int
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int
    # Mixture of experts
    num_experts: int
    experts_per_token: int
    num_expert_groups: int
    groups_per_token: int
    moe_ffn_hidden_size: int
    num_shared_experts: int = 1
    num_dense_layers: int = 1
    """First layers whose feed-forward block is dense."""
    routed_scaling: float = 2.5
    bias_update_rate: float = 1e-3
    """Step of the auxiliary-loss-free balancing bias (V3 report section 4.2); 0 freezes it."""
    balance_loss: float = 1e-4
    """Weight of the sequence-wise balance loss (V3 report Eq. 17)."""

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
        if self.experts_per_token != 2 * self.groups_per_token:
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
        if not 0 <= self.num_dense_layers <= self.num_layers:
            raise ConfigError(
                f"model.num_dense_layers = {self.num_dense_layers} is not within 0 and "
                f"model.num_layers = {self.num_layers}"
            )


@dataclass(kw_only=True)
class Qwen2Config(ModelConfig):
    """Dense, grouped-query attention with a bias on q, k and v (arXiv:2412.15115)."""

    num_kv_heads: int
    head_dim: int
    qkv_bias: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_attention_heads % self.num_kv_heads:
            raise ConfigError(
                f"model.num_attention_heads = {self.num_attention_heads} is not divisible by "
                f"model.num_kv_heads = {self.num_kv_heads}"
            )
