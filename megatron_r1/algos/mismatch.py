"""How far the trainer's numbers are from the engine's, and what the loss does about it.

Both compute the same policy, in other kernels and at times from other weights: but for that,
r = pi_old / pi_rollout of a token is 1. All of it is pure, on the K usable tokens of a micro-batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.algos.reduce import max_part, mean_parts
from megatron_r1.config.algo import AlgoConfig, Ratio, RolloutMask

BEYOND = 2.0
"""Tokens whose probabilities differ by more than this factor count in `mismatch/beyond_frac`."""


def mismatch_metrics(
    logprobs_old_K: Tensor, logprobs_rollout_K: Tensor
) -> dict[str, tuple[Tensor, Tensor]]:
    """Of the tokens that the engine drew.

    Returns:
        logprob_abs_mean, logprob_abs_max: |difference|, nats.
        kl: KL(rollout || old) by k3, nats per token.
        beyond_frac: share of tokens whose ratio is out of [1 / BEYOND, BEYOND].
    """
    gap_K = logprobs_old_K - logprobs_rollout_K
    return {
        "mismatch/logprob_abs_mean": mean_parts(gap_K.abs()),
        "mismatch/logprob_abs_max": max_part(gap_K.abs()),
        "mismatch/kl": mean_parts(torch.expm1(gap_K) - gap_K),
        "mismatch/beyond_frac": mean_parts(gap_K.abs() > torch.log(gap_K.new_tensor(BEYOND))),
    }


def sequence_log_ratio(
    log_ratio_K: Tensor, sequences_K: Tensor, num_sequences: int, kind: Ratio
) -> Tensor:
    """log r at each token: its own, or the sum or the mean over its sequence."""
    if kind is Ratio.token:
        return log_ratio_K
    zeros_S = log_ratio_K.new_zeros(num_sequences)
    log_ratio_S = zeros_S.index_add(0, sequences_K, log_ratio_K)
    if kind is Ratio.sequence_mean:
        counts_S = zeros_S.index_add(0, sequences_K, torch.ones_like(log_ratio_K))
        log_ratio_S = log_ratio_S / counts_S.clamp(min=1)
    return log_ratio_S[sequences_K]


def rollout_correction(
    log_ratio_K: Tensor, sequences_K: Tensor, num_sequences: int, *, config: AlgoConfig
) -> tuple[Tensor, dict[str, tuple[Tensor, Tensor]]]:
    """What each token's loss is multiplied by: min(r, cap), or 0 where it is masked.

    Args:
        log_ratio_K: log(pi_old / pi_rollout), nats, without gradient.
        sequences_K: which of `num_sequences` a token belongs to.
    """
    factor_K = torch.ones_like(log_ratio_K)
    metrics = {}
    if config.rollout_correction_cap > 0:
        kind = config.rollout_correction
        ratio_K = sequence_log_ratio(log_ratio_K, sequences_K, num_sequences, kind).exp()
        factor_K = ratio_K.clamp(max=config.rollout_correction_cap)
        metrics["mismatch/ratio_capped_frac"] = mean_parts(ratio_K > config.rollout_correction_cap)
    if config.rollout_mask is not RolloutMask.none:
        by_token = config.rollout_mask is RolloutMask.token
        kind = Ratio.token if by_token else Ratio.sequence_mean
        ratio_K = sequence_log_ratio(log_ratio_K, sequences_K, num_sequences, kind).exp()
        masked_K = (ratio_K < config.rollout_mask_low) | (ratio_K > config.rollout_mask_high)
        factor_K = factor_K * ~masked_K
        metrics["mismatch/masked_frac"] = mean_parts(masked_K)
    return factor_K, metrics
