"""Group-relative policy optimisation per token, and corrections for stale or foreign samples.

K is the number of trainable tokens whose log-probabilities are finite, S the number of sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.algos.kl import kl_k3, kl_penalty
from megatron_r1.algos.reduce import masked_mean, mean_parts
from megatron_r1.algos.shapes import check_same_shape
from megatron_r1.config.algo import GrpoConfig
from megatron_r1.types import LossOutput, MicroBatch


def grpo_loss(logprobs_T: Tensor, micro: MicroBatch, *, config: GrpoConfig) -> LossOutput:
    """Clipped group-relative policy loss with a KL penalty to the reference policy.

    DeepSeekMath (arXiv:2402.03300) Eq. 3, with DeepSeek-R1's constants (arXiv:2501.12948v2 section
    3.2.1). Where it departs from what is printed:

    - R1 Eq. 1 writes one probability ratio per rollout; ours is per token, as in DeepSeekMath and
      as R1's remark on clipped *tokens* implies. A product over 10,000 tokens cannot be clipped at
      10.
    - R1 Eq. 1 has no mean over the tokens of a rollout. Ours is whatever weights the tokens were
      given (`algos/reduce.py`); a token that is dropped takes its weight along.
    - `config.rollout_correction_cap` multiplies the whole loss of a token, KL included, since
      every term is an expectation over tokens that the engine drew.

    Args:
        logprobs_T: nats, float32; the only input that carries a gradient.
        micro: whole sequences; `logprobs_ref_T` is read only if `config.kl_beta` > 0. Tokens whose
            rollout or old log-probability is not finite are left out of everything and counted.
    Returns:
        This micro-batch's share of the step's loss, to be added to the others', and metrics, which
        include rollouts that were left out as stale.
    Raises:
        ValueError: logprobs_T and the tensors of `micro` differ in shape; the message lists all.
    """
    check_same_shape(
        logprobs_T=logprobs_T,
        logprobs_old_T=micro.logprobs_old_T,
        logprobs_rollout_T=micro.logprobs_rollout_T,
        logprobs_ref_T=micro.logprobs_ref_T,
        loss_mask_T=micro.loss_mask_T,
        weights_T=micro.weights_T,
        advantages_T=micro.advantages_T,
    )
    finite_T = micro.logprobs_old_T.isfinite() & micro.logprobs_rollout_T.isfinite()
    # Selecting, rather than multiplying by 0, keeps an infinity out of the gradient as well.
    usable_T = micro.loss_mask_T & finite_T
    logprobs_K = logprobs_T[usable_T]
    logprobs_old_K = micro.logprobs_old_T[usable_T]
    logprobs_rollout_K = micro.logprobs_rollout_T[usable_T]
    advantages_K = micro.advantages_T[usable_T]
    weights_K = micro.weights_T[usable_T]

    ratio_K = torch.exp(logprobs_K - logprobs_old_K)
    clipped_K = ratio_K.clamp(1 - config.clip_eps_low, 1 + config.clip_eps_high)
    surrogate_K = torch.minimum(ratio_K * advantages_K, clipped_K * advantages_K)
    loss_K = -surrogate_K
    metrics = {
        "algo/clip_frac": mean_parts(surrogate_K < ratio_K * advantages_K),
        "algo/ratio_mean": mean_parts(ratio_K),
        # The tokens were drawn from the old policy, so this estimates KL(old || policy).
        "algo/kl_old": mean_parts(kl_k3(logprobs_old_K, logprobs_K)),
        "algo/dropped_token_frac": mean_parts(~finite_T[micro.loss_mask_T]),
        "mismatch/logprob_abs_mean": mean_parts((logprobs_old_K - logprobs_rollout_K).abs()),
    }
    if config.kl_beta > 0:
        logprobs_ref_K = micro.logprobs_ref_T[usable_T]
        loss_K = loss_K + config.kl_beta * kl_penalty(
            logprobs_K, logprobs_ref_K, logprobs_old_K, estimator=config.kl_estimator
        )
        # k3 whatever the estimator in the loss, so that runs can be compared.
        metrics["algo/kl_ref"] = mean_parts(kl_k3(logprobs_K, logprobs_ref_K))
    if config.rollout_correction_cap > 0:
        foreign_K = torch.exp(logprobs_old_K - logprobs_rollout_K)
        loss_K = loss_K * foreign_K.clamp(max=config.rollout_correction_cap)
        metrics["mismatch/ratio_capped_frac"] = mean_parts(
            foreign_K > config.rollout_correction_cap
        )
    if config.drop_stale_kl > 0:
        stale_S = stale_rollouts(logprobs_T, usable_T, micro, max_kl=config.drop_stale_kl)
        lengths_S = torch.tensor(micro.seq_lengths, device=stale_S.device)
        weights_K = weights_K * ~stale_S.repeat_interleave(lengths_S)[usable_T]
        trainable_S = torch.stack(
            [mask.any() for mask in micro.loss_mask_T.split(micro.seq_lengths)]
        )
        metrics["algo/stale_rollout_frac"] = mean_parts(stale_S[trainable_S])
    return LossOutput(loss=(weights_K * loss_K).sum(), metrics=metrics)


def stale_rollouts(
    logprobs_T: Tensor, usable_T: Tensor, micro: MicroBatch, *, max_kl: float
) -> Tensor:
    """bool_S: rollouts that the policy has left behind and that would only push it further away.

    Off-policy sequence masking of DeepSeek-V3.2 (arXiv:2512.02556): the advantage is negative and
    the mean of log(pi_old / pi) over usable tokens exceeds max_kl nats. V3.2 takes pi_old from the
    engine; ours is the trainer's own, since the engine's difference has a correction of its own.
    """
    drift_T = micro.logprobs_old_T - logprobs_T.detach()
    sequences = zip(
        drift_T.split(micro.seq_lengths), usable_T.split(micro.seq_lengths), strict=True
    )
    drift_S = torch.stack([masked_mean(drift_L, usable_L) for drift_L, usable_L in sequences])
    advantages_S = torch.stack([row_L[0] for row_L in micro.advantages_T.split(micro.seq_lengths)])
    return (advantages_S < 0) & (drift_S > max_kl)
