"""Distillation from a teacher's logits. From its samples, as in DeepSeek-R1, it is `sft.py`.

c rows of T that are worked on at once, so that float32 copies of bfloat16 logits stay small
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_r1.algos.logprobs import row_chunks
from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.shapes import check_same_shape
from megatron_r1.types import LossOutput, MicroBatch


def teacher_divergence(
    logits_Tv: Tensor,
    teacher_logits_Tv: Tensor,
    *,
    interpolation: float = 0.0,
    temperature: float = 1.0,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> Tensor:
    """Generalised Jensen-Shannon divergence between teacher p and student q at each column.

        0: KL(p || q)    1: KL(q || p)    b: b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q

    GKD (arXiv:2306.13649) Eq. 1; 0 is the classical loss (arXiv:1503.02531) up to the teacher's
    entropy. The values at 0 and 1 are the limits of JSD(b) / b and JSD(b) / (1 - b), as the paper
    has it. With q = softmax(z / temperature), the gradients with respect to z x temperature are

        0: q - p    1: q (log(q / p) - KL(q || p))    b: (1 - b) q (log(q / m) - KL(q || m))

    The vocabulary is never gathered: ranks exchange six numbers per column, in five all-reduces.

    Args:
        logits_Tv: the student's, columns vocab_start .. vocab_start + v of the vocabulary, any
            float dtype; the only input that carries a gradient.
        teacher_logits_Tv: the teacher's, of the same columns.
        interpolation: b, in [0, 1].
        temperature: divides both logits, > 0.
        vocab_size: columns of the vocabulary from this one on are padding, of probability 0.
        group: the tensor-parallel ranks that hold the other columns; None: this rank holds all.
            The gradient of the result must be the same on all of them.
    Returns:
        divergence_T, nats, float32 or the logits' own float64. Not token-aligned: column t is
        about token t + 1, see `algos/logprobs.py`.
    Raises:
        ValueError: shapes do not match, or a setting is out of range.
    """
    if not 0 <= interpolation <= 1:
        raise ValueError(f"interpolation must be in [0, 1], got {interpolation}")
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    check_same_shape(logits_Tv=logits_Tv, teacher_logits_Tv=teacher_logits_Tv)
    num_valid = logits_Tv.shape[1]
    if vocab_size is not None:
        num_valid = min(max(vocab_size - vocab_start, 0), num_valid)
    return _TeacherDivergence.apply(
        logits_Tv, teacher_logits_Tv, interpolation, temperature, num_valid, group
    )


def distillation_loss(divergence_T: Tensor, micro: MicroBatch) -> LossOutput:
    """Weighted divergence from the teacher at the trainable tokens.

    Args:
        divergence_T: of the distributions that each token was predicted by; nats, token-aligned.
    Returns:
        This micro-batch's share of the step's loss, and ``distill/divergence``, nats per token.
    """
    check_same_shape(divergence_T=divergence_T, loss_mask_T=micro.loss_mask_T)
    divergence_K = divergence_T[micro.loss_mask_T]
    loss = (micro.weights_T[micro.loss_mask_T] * divergence_K).sum()
    return LossOutput(loss=loss, metrics={"distill/divergence": mean_parts(divergence_K)})


class _TeacherDivergence(torch.autograd.Function):
    """Saves both logits in their own dtype and three floats a column; the rest is made again."""

    @staticmethod
    def forward(ctx, logits_Tv, teacher_Tv, interpolation, temperature, num_valid, group):
        scale = (temperature, num_valid)
        log_sums_2T = torch.stack(
            [_log_sum_exp(logits_Tv, scale, group), _log_sum_exp(teacher_Tv, scale, group)]
        )
        # KL(p || m) and KL(q || m), each summed over this rank's columns, then over all.
        sums_2T = torch.cat(
            [
                _shard_divergences(log_q_cv, log_p_cv, interpolation)
                for _, log_q_cv, log_p_cv in _log_softmaxes(
                    logits_Tv, teacher_Tv, log_sums_2T, scale
                )
            ],
            dim=1,
        )
        if group is not None:
            dist.all_reduce(sums_2T, group=group)
        kl_p_T, kl_q_T = sums_2T
        ctx.save_for_backward(logits_Tv, teacher_Tv, log_sums_2T, kl_q_T)
        ctx.interpolation, ctx.scale = interpolation, scale
        if interpolation == 0:
            return kl_p_T
        if interpolation == 1:
            return kl_q_T
        return interpolation * kl_p_T + (1 - interpolation) * kl_q_T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_T):
        logits_Tv, teacher_Tv, log_sums_2T, kl_q_T = ctx.saved_tensors
        temperature, num_valid = ctx.scale
        grad_Tv = torch.zeros_like(logits_Tv)
        for rows, log_q_cv, log_p_cv in _log_softmaxes(
            logits_Tv, teacher_Tv, log_sums_2T, ctx.scale
        ):
            if ctx.interpolation == 0:
                grad_cv = log_q_cv.exp() - log_p_cv.exp()
            else:
                log_m_cv = _log_mixture(log_q_cv, log_p_cv, ctx.interpolation)
                grad_cv = log_q_cv.exp() * (log_q_cv - log_m_cv - kl_q_T[rows, None])
                if ctx.interpolation < 1:
                    grad_cv = (1 - ctx.interpolation) * grad_cv
            grad_Tv[rows, :num_valid] = (grad_cv * (grad_T[rows, None] / temperature)).to(
                grad_Tv.dtype
            )
        return grad_Tv, None, None, None, None, None


def _log_softmaxes(
    logits_Tv: Tensor, teacher_Tv: Tensor, log_sums_2T: Tensor, scale: tuple[float, int]
) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """For a few rows at a time log q and log p of this rank's columns, padding left out."""
    for rows in row_chunks(logits_Tv):
        yield (
            rows,
            _scaled(logits_Tv[rows], scale) - log_sums_2T[0, rows, None],
            _scaled(teacher_Tv[rows], scale) - log_sums_2T[1, rows, None],
        )


def _shard_divergences(log_q_cv: Tensor, log_p_cv: Tensor, interpolation: float) -> Tensor:
    """Two rows: KL(p || m) and KL(q || m) over these columns, m = q at 0 and p at 1."""
    log_m_cv = _log_mixture(log_q_cv, log_p_cv, interpolation)
    return torch.stack(
        [(log_cv.exp() * (log_cv - log_m_cv)).sum(dim=1) for log_cv in (log_p_cv, log_q_cv)]
    )


def _log_mixture(log_q_cv: Tensor, log_p_cv: Tensor, interpolation: float) -> Tensor:
    if interpolation == 0:
        return log_q_cv
    if interpolation == 1:
        return log_p_cv
    return torch.logaddexp(
        log_p_cv + math.log(interpolation), log_q_cv + math.log1p(-interpolation)
    )


def _log_sum_exp(
    logits_Tv: Tensor, scale: tuple[float, int], group: dist.ProcessGroup | None
) -> Tensor:
    """log_sum_T over the whole vocabulary; -inf from a rank that holds padding alone."""
    log_sum_T = torch.cat(
        [torch.logsumexp(_scaled(logits_Tv[rows], scale), dim=1) for rows in row_chunks(logits_Tv)]
    )
    if group is None:
        return log_sum_T
    peak_T = log_sum_T.clone()
    dist.all_reduce(peak_T, dist.ReduceOp.MAX, group)
    sum_T = torch.exp(log_sum_T - peak_T)
    dist.all_reduce(sum_T, group=group)
    return peak_T + sum_T.log()


def _scaled(logits_cv: Tensor, scale: tuple[float, int]) -> Tensor:
    """A copy without padding columns, in float32 at least, divided by the temperature."""
    temperature, num_valid = scale
    dtype = torch.promote_types(logits_cv.dtype, torch.float32)
    return logits_cv[:, :num_valid].to(dtype) / temperature
