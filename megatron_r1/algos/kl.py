"""Estimators of KL(policy || reference) from one sampled token, and what they do as a loss.

J. Schulman, "Approximating KL Divergence" (2020, http://joschu.net/blog/kl-approx.html), names k1,
k2 and k3. With d = log(pi / pi_ref) at a token drawn from pi:

    estimator      value            as an estimate               gradient in expectation, as a loss
    k1             d                unbiased, high variance      zero
    k2             d^2 / 2          biased, low variance         of KL(pi || pi_ref)
    k3             e^-d - 1 + d     unbiased, low variance, >= 0 of KL(pi_ref || pi)
    k3_corrected   pi / pi_old * k3 unbiased also off policy     of KL(pi || pi_ref)

The gradients of k1, k2 and k3 are discussed in arXiv:2510.01555. DeepSeek-R1 (arXiv:2501.12948v2
Eq. 2) has k3 in the loss; DeepSeek-V3.2 (arXiv:2512.02556) corrects it by the ratio, with its
gradient. All of it is in nats, per token, and has the shape of the inputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.config.algo import KlEstimator


def kl_penalty(
    logprobs_T: Tensor, logprobs_ref_T: Tensor, logprobs_old_T: Tensor, *, estimator: KlEstimator
) -> Tensor:
    """The chosen estimator; gradient flows into `logprobs_T`.

    `logprobs_old_T`, of the policy that drew the tokens, is read by `k3_corrected` alone.
    """
    match estimator:
        case KlEstimator.k1:
            return kl_k1(logprobs_T, logprobs_ref_T)
        case KlEstimator.k2:
            return kl_k2(logprobs_T, logprobs_ref_T)
        case KlEstimator.k3:
            return kl_k3(logprobs_T, logprobs_ref_T)
        case KlEstimator.k3_corrected:
            ratio_T = torch.exp(logprobs_T - logprobs_old_T)
            return ratio_T * kl_k3(logprobs_T, logprobs_ref_T)


def kl_k1(logprobs_T: Tensor, logprobs_ref_T: Tensor) -> Tensor:
    """log(pi / pi_ref)."""
    return logprobs_T - logprobs_ref_T


def kl_k2(logprobs_T: Tensor, logprobs_ref_T: Tensor) -> Tensor:
    """log(pi / pi_ref)^2 / 2."""
    return 0.5 * (logprobs_T - logprobs_ref_T).square()


def kl_k3(logprobs_T: Tensor, logprobs_ref_T: Tensor) -> Tensor:
    """pi_ref / pi - 1 - log(pi_ref / pi); expm1 keeps its digits where the two nearly agree."""
    log_ratio_T = logprobs_ref_T - logprobs_T
    return torch.expm1(log_ratio_T) - log_ratio_T
