"""Logits to log-probabilities of tokens, over a vocabulary that may be split over tensor ranks.

    c rows of T that are worked on at once, so that float32 copies of bfloat16 logits stay small

A model's logits at column t describe token t + 1; everything else in this repository is
token-aligned. `next_tokens` and `align_to_tokens` are the two halves of that shift, and the only
ones: take `target_logprobs` of the shifted targets, and align what comes out. Under context
parallelism, where the logits of token t - 1 may be on another rank, shift the targets before
slicing the stream, gather the result over the context ranks and align it then.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_r1.algos.shapes import check_same_shape
from r1_kernels.backend import Backend
from r1_kernels.logit_rows import combine_shards, logit_gradient, logit_statistics

CHUNK_ELEMENTS = 1 << 24
"""Logits converted to float32 at once, at most: 64 MiB, whatever the length of the stream."""


def next_tokens(tokens_T: Tensor, *, steps: int = 1) -> Tensor:
    """What the logits of each column predict: column t holds token t + steps.

    The last columns of a sequence hold tokens of the next one; `align_to_tokens` discards them.
    """
    return tokens_T.roll(-steps)


def align_to_tokens(values_T: Tensor, positions_T: Tensor, *, steps: int = 1) -> Tensor:
    """Move what belongs to a prediction to the token predicted: t - steps to t; 0 at the first
    tokens, which nothing predicted."""
    return values_T.roll(steps).masked_fill(positions_T < steps, 0.0)


def target_logprobs(
    logits_Tv: Tensor,
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probability of targets_T[t], and entropy, under the logits of the same column t.

    Not token-aligned: see the head of this module. The vocabulary is never gathered: ranks exchange
    four numbers per column, in two all-reduces. By plain PyTorch on any device, whatever R1_KERNELS
    says: this is what `r1_kernels.token_logprobs` is compared with.

    Args:
        logits_Tv: columns vocab_start .. vocab_start + v of the vocabulary, any float dtype; the
            only input that carries a gradient. A logit of -inf is a token of probability 0; a row
            of nothing else has NaN for results and gradients.
        targets_T: int64. One that lies outside the vocabulary gets -inf.
        temperature: what the logits are divided by, > 0.
        vocab_size: columns of the vocabulary from this one on are padding, of probability 0.
        group: the tensor-parallel ranks that hold the other columns; None: this rank holds all.
            The gradient of the result must be the same on all of them.
    Returns:
        logprobs_T, with gradient, and entropy_T, without; nats, float32.
    Raises:
        ValueError: shapes do not match, or the temperature is not positive.
    """
    if temperature <= 0:
        raise ValueError(f"temperature must be > 0, got {temperature}")
    check_same_shape(targets_T=targets_T, first_column_of_logits_Tv=logits_Tv[:, 0])
    return _TargetLogprobs.apply(logits_Tv, targets_T, temperature, vocab_start, vocab_size, group)


class _TargetLogprobs(torch.autograd.Function):
    """Saves the logits in their own dtype and two floats a column; the softmax is made again."""

    @staticmethod
    def forward(ctx, logits_Tv, targets_T, temperature, vocab_start, vocab_size, group):
        ctx.scale = 1.0 / temperature
        ctx.num_valid = None if vocab_size is None else max(vocab_size - vocab_start, 0)
        columns_T = targets_T - vocab_start
        dtype = torch.promote_types(logits_Tv.dtype, torch.float32)
        statistics_4T = logits_Tv.new_empty(4, logits_Tv.shape[0], dtype=dtype)
        for rows in row_chunks(logits_Tv):
            statistics_4T[:, rows] = logit_statistics(
                logits_Tv[rows],
                columns_T[rows],
                scale=ctx.scale,
                num_valid=ctx.num_valid,
                backend=Backend.reference,
            )
        peak_T, log_sum_T, entropy_T, target_T = combine_shards(statistics_4T, group)
        ctx.save_for_backward(logits_Tv, columns_T, peak_T, log_sum_T)
        ctx.mark_non_differentiable(entropy_T)
        return target_T - peak_T - log_sum_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_logprobs_T, _grad_entropy_T):
        """d log p(target) / d logit_v = (1[v = target] - p_v) / temperature."""
        logits_Tv, columns_T, peak_T, log_sum_T = ctx.saved_tensors
        grad_Tv = torch.empty_like(logits_Tv)
        for rows in row_chunks(logits_Tv):
            grad_Tv[rows] = logit_gradient(
                logits_Tv[rows].clone(),
                columns_T[rows],
                peak_T[rows],
                log_sum_T[rows],
                grad_logprobs_T[rows],
                scale=ctx.scale,
                num_valid=ctx.num_valid,
                backend=Backend.reference,
            )
        return grad_Tv, None, None, None, None, None


def row_chunks(logits_Tv: Tensor) -> Iterator[slice]:
    """Consecutive rows, at least one at a time, of at most CHUNK_ELEMENTS logits."""
    num_rows, num_columns = logits_Tv.shape
    step = max(CHUNK_ELEMENTS // num_columns, 1)
    return (slice(start, start + step) for start in range(0, num_rows, step))
