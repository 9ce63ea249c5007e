"""The clipped policy loss with its KL penalty, summed over tokens; gradients are autograd's.

With r = pi / pi_old, d = log(pi_ref / pi), and w the token's weight in the step:

    loss = sum of w (-min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) + beta (e^d - 1 - d))
"""

from __future__ import annotations

import torch
from torch import Tensor


def grpo_loss(
    logprobs_T: Tensor,
    logprobs_old_T: Tensor,
    logprobs_ref_T: Tensor | None,
    advantages_T: Tensor,
    weights_T: Tensor,
    mask_T: Tensor,
    *,
    eps_low: float,
    eps_high: float,
    kl_beta: float,
) -> tuple[Tensor, Tensor]:
    """The loss, a scalar with gradient, and sums over the tokens of the mask, [5], without:
    tokens, tokens whose clipped term is the smaller, r, k3 of KL(old || policy), k3 to the
    reference (0 without one)."""
    logprobs_K, old_K = logprobs_T[mask_T], logprobs_old_T[mask_T].detach()
    advantages_K, weights_K = advantages_T[mask_T].detach(), weights_T[mask_T].detach()
    log_ratio_K = logprobs_K - old_K
    ratio_K = log_ratio_K.exp()
    unclipped_K = ratio_K * advantages_K
    clipped_K = ratio_K.clamp(1 - eps_low, 1 + eps_high) * advantages_K
    surrogate_K = torch.minimum(unclipped_K, clipped_K)
    loss_K = -surrogate_K
    kl_ref_K = torch.zeros_like(loss_K)
    if logprobs_ref_T is not None:
        d_K = logprobs_ref_T[mask_T].detach() - logprobs_K
        kl_ref_K = torch.expm1(d_K) - d_K
        loss_K = loss_K + kl_beta * kl_ref_K
    sums_5 = torch.stack(
        [
            torch.ones_like(loss_K).sum(),
            (surrogate_K < unclipped_K).to(loss_K.dtype).sum(),
            ratio_K.sum(),
            (torch.expm1(log_ratio_K) - log_ratio_K).sum(),
            kl_ref_K.sum(),
        ]
    )
    return (weights_K * loss_K).sum(), sums_5.detach()
