"""`conf/algo/`: the loss, its advantage and its KL penalty."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from megatron_r1.errors import ConfigError


class KlEstimator(Enum):
    """Estimators of KL(policy || reference) per token; `algos/kl.py`."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"
    k3_corrected = "k3_corrected"


class AdvantageNorm(Enum):
    """What the centred group rewards are divided by."""

    std = "std"
    """The group's population standard deviation: R1 Eq. 3, which states no convention."""
    none = "none"
    """Nothing (Dr. GRPO, arXiv:2503.20783)."""


class LossReduction(Enum):
    """How token losses become one number; `algos/reduce.py`."""

    rollout_mean = "rollout_mean"
    """Mean over tokens inside a rollout, then over rollouts (DeepSeekMath Eq. 3)."""
    token_mean = "token_mean"
    """Mean over all trainable tokens of the step (DAPO, arXiv:2503.14476)."""
    constant = "constant"
    """Sum over tokens / (rollouts x `max_response_tokens`) (Dr. GRPO)."""


@dataclass(kw_only=True)
class GrpoConfig:
    """Group-relative policy optimisation with clipped ratios per token.

    The defaults are DeepSeek-R1's (arXiv:2501.12948v2 section 3.2.1), chosen by ``algo=grpo_r1``.
    """

    name: str = "grpo_r1"
    clip_eps_low: float = 10.0
    """Ratios are clipped to [1 - low, 1 + high]. At 10 the lower bound never binds."""
    clip_eps_high: float = 10.0
    kl_beta: float = 0.001
    """Weight of the KL penalty in the loss, per nat. 0 keeps no reference model."""
    kl_estimator: KlEstimator = KlEstimator.k3
    advantage_norm: AdvantageNorm = AdvantageNorm.std
    advantage_eps: float = 1e-6
    """Added to the standard deviation. The paper states none."""
    loss_reduction: LossReduction = LossReduction.rollout_mean
    rollout_correction_cap: float = 0.0
    """Truncated importance sampling: each token's loss is multiplied by
    min(pi_old / pi_rollout, cap). 0 turns it off (R1); 2.0 is verl's default."""
    drop_stale_kl: float = 0.0
    """Off-policy sequence masking (DeepSeek-V3.2): a rollout with a negative advantage whose mean
    log(pi_old / pi) exceeds this many nats is left out of the loss. 0 turns it off."""
    mtp_loss: float = 0.0
    """Weight of the prediction layers' loss on sampled tokens; 0 leaves these layers untrained."""
    drop_zero_std_groups: bool = False
    """Leave groups whose rewards are all equal out of the batch: their policy gradient is zero."""

    def __post_init__(self) -> None:
        for name in (
            "kl_beta",
            "advantage_eps",
            "rollout_correction_cap",
            "drop_stale_kl",
            "mtp_loss",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(f"algo.{name} must be >= 0, got {getattr(self, name)}")
        for name in ("clip_eps_low", "clip_eps_high"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"algo.{name} must be > 0, got {getattr(self, name)}")
