"""PPO's KL-penalised surrogate and its adaptive coefficient."""

from __future__ import annotations

from torch import Tensor

from megatron_r1.algos.kl import kl_k3
from megatron_r1.algos.ratios import ratios
from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.rollout_tokens import usable_tokens, weighted_loss
from megatron_r1.config.algo import KlPenaltyConfig, Ratio
from megatron_r1.types import LossOutput, MicroBatch


def kl_penalised_loss(
    logprobs_T: Tensor, micro: MicroBatch, *, config: KlPenaltyConfig, coefficient: float
) -> LossOutput:
    """A penalty on leaving the policy that sampled, in the place of a clip.

        -(ratio A - coefficient KL(pi_old || pi))

    PPO (arXiv:1707.06347) Eq. 8. The KL over the whole vocabulary is estimated from the sampled
    token by ratio - 1 - log(ratio), whose value and gradient are unbiased, since pi_old drew the
    token. Arguments, results and errors are those of `grpo_loss`.

    Args:
        coefficient: beta of Eq. 8, per nat; see `adapt_coefficient`.
    """
    tokens = usable_tokens(logprobs_T, micro)
    ratio_K = ratios(tokens, Ratio.token)
    kl_old_K = kl_k3(tokens.logprobs_old_K, tokens.logprobs_K)
    loss_K = coefficient * kl_old_K - ratio_K * tokens.advantages_K
    metrics = {"algo/kl_coefficient": mean_parts(loss_K.new_tensor([coefficient]))}
    return weighted_loss(loss_K, tokens, micro, config=config, metrics=metrics)


def adapt_coefficient(coefficient: float, *, kl: float, target_kl: float) -> float:
    """The coefficient of the next phase: arXiv:1707.06347 section 4.

    Halved if the KL of the phase that ended is below target / 1.5, doubled if it is above
    target x 1.5. The paper finds the result insensitive to both numbers.
    """
    if kl < target_kl / 1.5:
        return coefficient / 2
    if kl > target_kl * 1.5:
        return coefficient * 2
    return coefficient
