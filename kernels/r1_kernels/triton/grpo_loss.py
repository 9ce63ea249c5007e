"""The policy loss, its sums and its gradient from one read of each token's numbers.

Sums of blocks are added up afterwards by PyTorch, in float64, so that the order of programs changes
nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1_kernels.triton import is_interpreted

BLOCK = 1024


@triton.jit
def _expm1_less(x):
    """e^x - 1 - x, by its series where the difference would lose digits."""
    series = x * x * (0.5 + x * (1.0 / 6 + x * (1.0 / 24 + x * (1.0 / 120 + x * (1.0 / 720)))))
    return tl.where(tl.abs(x) < 0.25, series, tl.exp(x) - 1.0 - x)


@triton.jit
def _expm1(x):
    return tl.where(tl.abs(x) < 0.25, _expm1_less(x) + x, tl.exp(x) - 1.0)


@triton.jit
def _loss_kernel(
    logprobs_ptr, old_ptr, ref_ptr, advantages_ptr, weights_ptr, mask_ptr, grad_ptr, sums_ptr,
    num_tokens, num_blocks, lower, upper, kl_beta,
    HAS_REF: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    tokens = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = tokens < num_tokens
    chosen = inside & (tl.load(mask_ptr + tokens, mask=inside, other=0) != 0)
    # Tokens outside the mask are not even read: what stands there may be NaN.
    logprobs = tl.load(logprobs_ptr + tokens, mask=chosen, other=0.0)
    log_ratio = logprobs - tl.load(old_ptr + tokens, mask=chosen, other=0.0)
    advantages = tl.load(advantages_ptr + tokens, mask=chosen, other=0.0)
    weights = tl.load(weights_ptr + tokens, mask=chosen, other=0.0)
    ratio = tl.exp(log_ratio)
    unclipped = ratio * advantages
    # Unless told otherwise a GPU's minimum and maximum pass over a NaN: the loss would hide it.
    clipped = tl.maximum(ratio, lower, propagate_nan=tl.PropagateNan.ALL)
    clipped = tl.minimum(clipped, upper, propagate_nan=tl.PropagateNan.ALL) * advantages
    is_clipped = clipped < unclipped
    loss = -tl.minimum(unclipped, clipped, propagate_nan=tl.PropagateNan.ALL)
    # d ratio / d logprob is the ratio itself; a term that was clipped does not move.
    grad = tl.where(is_clipped, 0.0, -unclipped)
    kl_ref = tl.zeros_like(loss)
    if HAS_REF:
        d = tl.load(ref_ptr + tokens, mask=chosen, other=0.0) - logprobs
        kl_ref = _expm1_less(d)
        loss += kl_beta * kl_ref
        grad -= kl_beta * _expm1(d)
    kl_old = _expm1_less(log_ratio)
    tl.store(grad_ptr + tokens, tl.where(chosen, weights * grad, 0.0), mask=inside)
    count = tl.where(chosen, 1.0, 0.0)
    place = sums_ptr + tl.program_id(0)
    tl.store(place, tl.sum(tl.where(chosen, weights * loss, 0.0), axis=0))
    tl.store(place + num_blocks, tl.sum(count, axis=0))
    tl.store(place + 2 * num_blocks, tl.sum(tl.where(chosen & is_clipped, 1.0, 0.0), axis=0))
    tl.store(place + 3 * num_blocks, tl.sum(tl.where(chosen, ratio, 0.0), axis=0))
    tl.store(place + 4 * num_blocks, tl.sum(tl.where(chosen, kl_old, 0.0), axis=0))
    tl.store(place + 5 * num_blocks, tl.sum(tl.where(chosen, kl_ref, 0.0), axis=0))


class _GrpoLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logprobs_T, old_T, ref_T, advantages_T, weights_T, mask_T, lower, upper, beta):
        num_tokens = logprobs_T.numel()
        block = BLOCK if not is_interpreted() else 32
        num_blocks = triton.cdiv(num_tokens, block)
        grad_T = torch.empty_like(logprobs_T)
        sums_6b = torch.empty(6, num_blocks, device=logprobs_T.device)
        if num_tokens:
            _loss_kernel[(num_blocks,)](
                logprobs_T, old_T, ref_T, advantages_T, weights_T, mask_T, grad_T, sums_6b,
                num_tokens, num_blocks, lower, upper, beta,
                HAS_REF=ref_T is not None, BLOCK=block,
            )  # fmt: skip
        sums_6 = sums_6b.double().sum(dim=1).float()
        ctx.save_for_backward(grad_T)
        loss, sums_5 = sums_6[0].clone(), sums_6[1:].clone()
        ctx.mark_non_differentiable(sums_5)
        return loss, sums_5

    @staticmethod
    def backward(ctx, grad_loss, _grad_sums):
        (grad_T,) = ctx.saved_tensors
        return grad_T * grad_loss, *(None,) * 8


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
    inputs = (logprobs_T, logprobs_old_T, logprobs_ref_T, advantages_T, weights_T)
    tensors = [None if x is None else x.float().contiguous() for x in inputs]
    mask_T = mask_T.contiguous()
    return _GrpoLoss.apply(*tensors, mask_T, 1 - eps_low, 1 + eps_high, kl_beta)
