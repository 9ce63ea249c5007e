"""What every loss on rollouts shares: which tokens count, the KL penalty, and corrections for stale
or foreign samples.

    tokens = usable_tokens(logprobs_T, micro)          the K tokens that count
    loss_K = ...                                       the objective's own equation
    return weighted_loss(loss_K, tokens, micro, ...)   penalty, corrections, weights, metrics

K is the number of trainable tokens whose log-probabilities are finite, S the number of sequences.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_r1.algos.kl import kl_k3, kl_penalty
from megatron_r1.algos.mismatch import mismatch_metrics, rollout_correction
from megatron_r1.algos.reduce import masked_mean, mean_parts
from megatron_r1.algos.shapes import check_same_shape
from megatron_r1.config.algo import AlgoConfig, KlPlace
from megatron_r1.types import LossOutput, MicroBatch


@dataclass(frozen=True)
class RolloutTokens:
    """The tokens of a micro-batch that count in the loss."""

    logprobs_T: Tensor
    usable_T: Tensor
    """bool; trainable, with finite rollout and old log-probabilities."""
    finite_T: Tensor
    logprobs_K: Tensor
    """The only one that carries a gradient."""
    logprobs_old_K: Tensor
    logprobs_rollout_K: Tensor
    advantages_K: Tensor
    weights_K: Tensor
    sequences_K: Tensor
    """int64; which sequence of the micro-batch a token belongs to."""
    num_sequences: int


def usable_tokens(logprobs_T: Tensor, micro: MicroBatch) -> RolloutTokens:
    """Select the tokens that count.

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
    lengths_S = torch.tensor(micro.seq_lengths, device=usable_T.device)
    sequences_T = torch.arange(len(lengths_S), device=usable_T.device).repeat_interleave(lengths_S)
    return RolloutTokens(
        logprobs_T=logprobs_T,
        usable_T=usable_T,
        finite_T=finite_T,
        logprobs_K=logprobs_T[usable_T],
        logprobs_old_K=micro.logprobs_old_T[usable_T],
        logprobs_rollout_K=micro.logprobs_rollout_T[usable_T],
        advantages_K=micro.advantages_T[usable_T],
        weights_K=micro.weights_T[usable_T],
        sequences_K=sequences_T[usable_T],
        num_sequences=len(lengths_S),
    )


def weighted_loss(
    loss_K: Tensor,
    tokens: RolloutTokens,
    micro: MicroBatch,
    *,
    config: AlgoConfig,
    metrics: Mapping[str, tuple[Tensor, Tensor]],
) -> LossOutput:
    """The objective's token losses, with what the configuration adds, summed by their weights.

    The correction for foreign samples (`algos/mismatch.py`) multiplies the whole loss of a token,
    KL included, since every term is an expectation over tokens that the engine drew. A token that
    is dropped takes its weight along.

    Returns:
        This micro-batch's share of the step's loss, to be added to the others', and `metrics` with
        those of every objective.
    """
    weights_K = tokens.weights_K
    log_ratio_K = tokens.logprobs_K - tokens.logprobs_old_K
    metrics = {
        **metrics,
        "algo/ratio_mean": mean_parts(torch.exp(log_ratio_K)),
        # The tokens were drawn from the old policy, so this estimates KL(old || policy).
        "algo/kl_old": mean_parts(kl_k3(tokens.logprobs_old_K, tokens.logprobs_K)),
        "algo/dropped_token_frac": mean_parts(~tokens.finite_T[micro.loss_mask_T]),
        **mismatch_metrics(tokens.logprobs_old_K, tokens.logprobs_rollout_K),
    }
    if config.kl_beta > 0:
        logprobs_ref_K = micro.logprobs_ref_T[tokens.usable_T]
        if config.kl_place is KlPlace.loss:
            loss_K = loss_K + config.kl_beta * kl_penalty(
                tokens.logprobs_K,
                logprobs_ref_K,
                tokens.logprobs_old_K,
                estimator=config.kl_estimator,
            )
        # k3 whatever the estimator in the loss, so that runs can be compared.
        metrics["algo/kl_ref"] = mean_parts(kl_k3(tokens.logprobs_K, logprobs_ref_K))
    factor_K, corrected = rollout_correction(
        tokens.logprobs_old_K - tokens.logprobs_rollout_K,
        tokens.sequences_K,
        tokens.num_sequences,
        config=config,
    )
    loss_K = loss_K * factor_K
    metrics |= corrected
    if config.drop_stale_kl > 0:
        stale_S = stale_rollouts(tokens, micro, max_kl=config.drop_stale_kl)
        weights_K = weights_K * ~stale_S[tokens.sequences_K]
        trainable_S = torch.stack(
            [mask.any() for mask in micro.loss_mask_T.split(micro.seq_lengths)]
        )
        metrics["algo/stale_rollout_frac"] = mean_parts(stale_S[trainable_S])
    return LossOutput(loss=(weights_K * loss_K).sum(), metrics=metrics)


def stale_rollouts(tokens: RolloutTokens, micro: MicroBatch, *, max_kl: float) -> Tensor:
    """bool_S: rollouts that the policy has left behind and that would only push it further away.

    Off-policy sequence masking of DeepSeek-V3.2 (arXiv:2512.02556): the advantage is negative and
    the mean of log(pi_old / pi) over usable tokens exceeds max_kl nats. V3.2 takes pi_old from the
    engine; ours is the trainer's own, since the engine's difference has a correction of its own.
    Where advantages differ inside a rollout, their mean decides.
    """
    drift_T = micro.logprobs_old_T - tokens.logprobs_T.detach()
    usable = tokens.usable_T.split(micro.seq_lengths)

    def means_S(values_T: Tensor) -> Tensor:
        sequences = zip(values_T.split(micro.seq_lengths), usable, strict=True)
        return torch.stack([masked_mean(values_L, usable_L) for values_L, usable_L in sequences])

    return (means_S(micro.advantages_T) < 0) & (means_S(drift_T) > max_kl)
