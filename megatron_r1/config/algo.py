"""`conf/algo/`: the objective that a policy is trained on: its own rollouts, pairs, or a teacher.

One dataclass for each loss that is another formula. Most objectives with a name of their own are
GRPO's clipped surrogate with another advantage, ratio or reduction: they are presets of
`GrpoConfig`, files in `conf/algo/` that say in a line what they change.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.errors import ConfigError


class KlEstimator(Enum):
    """Estimators of KL(policy || reference) per token; `algos/kl.py`."""

    k1 = "k1"
    k2 = "k2"
    k3 = "k3"
    k3_corrected = "k3_corrected"


class KlPlace(Enum):
    """Where the KL penalty enters."""

    loss = "loss"
    """Added to each token's loss (GRPO)."""
    token_reward = "token_reward"
    """Taken off each token's reward, k1 of the policy that sampled: a token's advantage loses the
    penalties from it to the end (InstructGPT, arXiv:2203.02155; REINFORCE++)."""
    rollout_reward = "rollout_reward"
    """Taken off the reward of the response, k1 summed over its tokens, before the baseline (RLOO).
    """


class AdvantageBaseline(Enum):
    """What is taken off a rollout's reward; `algos/advantages.py`."""

    group_mean = "group_mean"
    """The mean of its group: R1 Eq. 3."""
    leave_one_out = "leave_one_out"
    """The mean of the others of its group (RLOO, arXiv:2402.14740)."""
    none = "none"
    """Nothing."""


class AdvantageNorm(Enum):
    """What advantages are divided by."""

    std = "std"
    """The group's population standard deviation: R1 Eq. 3, which states no convention."""
    sample_std = "sample_std"
    """The group's sample standard deviation, with G - 1: what TRL and verl take."""
    batch = "batch"
    """The standard deviation over all tokens of the phase, whose mean is taken off as well
    (REINFORCE++, arXiv:2501.03262)."""
    none = "none"
    """Nothing (Dr. GRPO, arXiv:2503.20783)."""


class Ratio(Enum):
    """The probability ratio between the policy and the one that sampled; `algos/ratios.py`."""

    token = "token"
    """Of each token (DeepSeekMath, arXiv:2402.03300)."""
    sequence = "sequence"
    """Of the whole response, the product over its tokens: R1 Eq. 1 as printed, and RLOO."""
    sequence_mean = "sequence_mean"
    """The geometric mean over the tokens of the response (GSPO, arXiv:2507.18071)."""


class RolloutMask(Enum):
    """What of a response is left out of the loss where trainer and engine disagree too much;
    `algos/mismatch.py`."""

    none = "none"
    token = "token"
    """Tokens whose pi_old / pi_rollout is out of bounds (IcePop, arXiv:2510.18855)."""
    sequence = "sequence"
    """Responses whose geometric mean of pi_old / pi_rollout is."""


class LossReduction(Enum):
    """How token losses become one number; `algos/reduce.py`."""

    rollout_mean = "rollout_mean"
    """Mean over tokens inside a rollout, then over rollouts (DeepSeekMath Eq. 3)."""
    token_mean = "token_mean"
    """Mean over all trainable tokens of the step (DAPO, arXiv:2503.14476)."""
    constant = "constant"
    """Sum over tokens / (rollouts x `max_response_tokens`) (Dr. GRPO)."""


@dataclass(kw_only=True)
class ObjectiveConfig:
    """What every objective has."""

    name: str

    def _check_at_least(self, least: float, *names: str) -> None:
        for name in names:
            if getattr(self, name) < least:
                raise ConfigError(f"algo.{name} must be >= {least}, got {getattr(self, name)}")

    def _check_positive(self, *names: str) -> None:
        for name in names:
            if getattr(self, name) <= 0:
                raise ConfigError(f"algo.{name} must be > 0, got {getattr(self, name)}")


@dataclass(kw_only=True)
class AlgoConfig(ObjectiveConfig):
    """What every objective on rollouts has. The defaults are DeepSeek-R1's (arXiv:2501.12948v2
    section 3.2.1)."""

    kl_beta: float = 0.001
    """Weight of the KL penalty to the reference, per nat. 0 keeps no reference model."""
    kl_estimator: KlEstimator = KlEstimator.k3
    """In the loss; in the reward it is k1."""
    kl_place: KlPlace = KlPlace.loss
    advantage_baseline: AdvantageBaseline = AdvantageBaseline.group_mean
    advantage_norm: AdvantageNorm = AdvantageNorm.std
    advantage_eps: float = 1e-6
    """Added to the standard deviation. The paper states none."""
    loss_reduction: LossReduction = LossReduction.rollout_mean
    rollout_correction_cap: float = 0.0
    """Truncated importance sampling: each token's loss is multiplied by
    min(pi_old / pi_rollout, cap). 0 turns it off (R1); 2.0 is verl's default."""
    rollout_correction: Ratio = Ratio.token
    """What is capped: a token's own pi_old / pi_rollout, or at all tokens of a response the product
    over them (`sequence`) or its geometric mean (`sequence_mean`)."""
    rollout_mask: RolloutMask = RolloutMask.none
    rollout_mask_low: float = 0.5
    """Lower bound of pi_old / pi_rollout for `rollout_mask`; IcePop's 0.5 and 5."""
    rollout_mask_high: float = 5.0
    keep_sampling_masks: bool = False
    """Under top-p and top-k probabilities are among the tokens that the engine left to choose from
    (DeepSeek-V3.2): the engine's, the trainer's and the reference's."""
    replay_routing: bool = False
    """The trainer sends each token to the experts that the engine sent it to (rollout routing
    replay, arXiv:2510.11370), under its own router's weights: old log-probabilities and updates.
    The reference policy, which sampled nothing, chooses its own."""
    drop_stale_kl: float = 0.0
    """Off-policy sequence masking (DeepSeek-V3.2): a rollout with a negative advantage whose mean
    log(pi_old / pi) exceeds this many nats is left out of the loss. 0 turns it off."""
    mtp_loss: float = 0.0
    """Weight of the prediction layers' loss on sampled tokens; 0 leaves these layers untrained."""
    drop_zero_std_groups: bool = False
    """Leave groups whose rewards are all equal out of the batch: their policy gradient is zero."""
    sampling_rounds: int = 1
    """Dynamic sampling (DAPO): up to this many times in a phase, prompts are drawn in place of the
    groups that `drop_zero_std_groups` left out. 1 leaves the phase smaller instead."""
    overlong_cache_tokens: int = 0
    """Soft overlong punishment (DAPO Eq. 13): over the last so many tokens before
    `rollout.max_response_tokens` the reward falls by up to 1. 0 turns it off."""

    def __post_init__(self) -> None:
        self._check_at_least(
            0, "kl_beta", "advantage_eps", "rollout_correction_cap", "drop_stale_kl", "mtp_loss"
        )
        self._check_at_least(0, "overlong_cache_tokens", "rollout_mask_low")
        if self.rollout_mask_high <= self.rollout_mask_low:
            raise ConfigError(
                f"algo.rollout_mask_high = {self.rollout_mask_high} must be above "
                f"algo.rollout_mask_low = {self.rollout_mask_low}"
            )
        self._check_at_least(1, "sampling_rounds")
        if self.kl_place is KlPlace.rollout_reward and self.advantage_norm in (
            AdvantageNorm.std,
            AdvantageNorm.sample_std,
        ):
            raise ConfigError(
                f"algo.kl_place = rollout_reward with algo.advantage_norm = "
                f"{self.advantage_norm.value}: the penalty is known only after the group was "
                "normalised. Set advantage_norm to none or batch"
            )
        if self.sampling_rounds > 1 and not self.drop_zero_std_groups:
            raise ConfigError(
                f"algo.sampling_rounds = {self.sampling_rounds} replaces the groups that "
                "algo.drop_zero_std_groups leaves out, and that is false. Set it to true, or the "
                "rounds to 1"
            )


@dataclass(kw_only=True)
class GrpoConfig(AlgoConfig):
    """The clipped surrogate: GRPO, and with other settings Dr. GRPO, DAPO, GSPO, RLOO and
    REINFORCE++; `algos/grpo.py`. The defaults are DeepSeek-R1's, chosen by ``algo=grpo_r1``."""

    name: str = "grpo_r1"
    ratio: Ratio = Ratio.token
    clip_eps_low: float = 10.0
    """Ratios are clipped to [1 - low, 1 + high]. At 10 the lower bound never binds."""
    clip_eps_high: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("clip_eps_low", "clip_eps_high")


@dataclass(kw_only=True)
class PpoConfig(GrpoConfig):
    """PPO: the clipped surrogate with advantages from a critic; `algos/gae.py`, `algos/value.py`,
    `trainers/critic.py`."""

    name: str = "ppo"
    kl_place: KlPlace = KlPlace.token_reward
    advantage_baseline: AdvantageBaseline = AdvantageBaseline.none
    advantage_norm: AdvantageNorm = AdvantageNorm.batch
    discount: float = 1.0
    """gamma; InstructGPT (arXiv:2203.02155 appendix C) discounts nothing."""
    gae_lambda: float = 1.0
    """In DeepSeek-R1's comparison 0.95, a common choice, fell clearly behind GRPO, and 1.0 came
    near it (arXiv:2501.12948v2 supplement A.3)."""
    value_clip: float = 0.2
    """Farthest that one phase's updates move a value without losing its gradient; as far as
    `clip_eps`, as in OpenAI's code (arXiv:2005.12729)."""
    critic_init_from: str | None = None
    """A run, a checkpoint or a Hugging Face model whose body the critic starts with, such as a
    reward model's; None: `model.init_from`. A new head starts with small weights."""
    critic_warmup_steps: int = 0
    """The first so many updates are the critic's alone; the policy waits."""
    critic_optimizer: OptimizerConfig = field(default_factory=lambda: OptimizerConfig(lr=9e-6))
    """9e-6 is InstructGPT's for value functions (arXiv:2203.02155 appendix C), 5e-6 beside its
    largest policy."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("value_clip")
        self._check_at_least(0, "critic_warmup_steps")
        for name in ("discount", "gae_lambda"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"algo.{name} must be in [0, 1], got {getattr(self, name)}")
        group_free = self.advantage_baseline is AdvantageBaseline.none and self.advantage_norm in (
            AdvantageNorm.batch,
            AdvantageNorm.none,
        )
        if not group_free or self.kl_place is KlPlace.rollout_reward or self.drop_zero_std_groups:
            raise ConfigError(
                "algo.name = ppo compares a rollout with its critic, and not with its group: leave "
                "algo.advantage_baseline at none, algo.advantage_norm at batch or none, "
                "algo.kl_place at token_reward or loss, and algo.drop_zero_std_groups at false"
            )


@dataclass(kw_only=True)
class CispoConfig(AlgoConfig):
    """CISPO: ratios are clipped as weights, and no token loses its gradient; `algos/cispo.py`."""

    name: str = "cispo"
    clip_eps_low: float = 1.0
    """Weights are clipped to [1 - low, 1 + high]; 1 sets no lower bound (MiniMax-M1)."""
    clip_eps_high: float = 4.0
    """5 is the upper bound of ScaleRL (arXiv:2510.13786); MiniMax-M1 states none."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("clip_eps_low", "clip_eps_high")


@dataclass(kw_only=True)
class KlPenaltyConfig(AlgoConfig):
    """PPO's other surrogate: a penalty on KL(old || policy) instead of a clip, with a coefficient
    that follows the KL; `algos/kl_penalty.py`."""

    name: str = "kl_penalty"
    initial_coefficient: float = 1.0
    """Where the coefficient starts; it finds its own size (arXiv:1707.06347 section 4)."""
    target_kl: float = 0.01
    """KL(old || policy) in nats per token that a phase's updates should reach: the best of three
    values in Table 1 of arXiv:1707.06347."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check_positive("initial_coefficient", "target_kl")


@dataclass(kw_only=True)
class DpoConfig(ObjectiveConfig):
    """Direct preference optimisation from pairs; `algos/dpo.py`."""

    name: str = "dpo"
    beta: float = 0.1
    """Weight of the KL behind the objective (arXiv:2305.18290 appendix B)."""
    label_smoothing: float = 0.0
    """The share of pairs taken to be the wrong way round (conservative DPO)."""

    def __post_init__(self) -> None:
        self._check_positive("beta")
        if not 0 <= self.label_smoothing < 0.5:
            raise ConfigError(
                f"algo.label_smoothing must be in [0, 0.5), got {self.label_smoothing}"
            )


@dataclass(kw_only=True)
class DistillSamplesConfig(ObjectiveConfig):
    """The likelihood of a teacher's responses, as DeepSeek-R1 distils; `algos/sft.py`."""

    name: str = "distill_samples"


@dataclass(kw_only=True)
class DistillLogitsConfig(ObjectiveConfig):
    """A divergence from a teacher's distribution at each token; `algos/distill.py`."""

    name: str = "distill_logits"
    interpolation: float = 0.0
    """0: KL(teacher || student), 1: KL(student || teacher), between them the generalised
    Jensen-Shannon divergence (GKD, arXiv:2306.13649)."""
    temperature: float = 1.0
    """Divides the logits of both."""

    def __post_init__(self) -> None:
        self._check_positive("temperature")
        if not 0 <= self.interpolation <= 1:
            raise ConfigError(f"algo.interpolation must be in [0, 1], got {self.interpolation}")
