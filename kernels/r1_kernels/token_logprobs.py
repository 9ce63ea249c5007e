"""Log-probabilities and entropies of tokens, from hidden states, without a matrix of all logits.

    T tokens     D width of hidden states     V vocabulary     v columns of it on this rank
    c tokens, or b columns, that are worked on at once

Products with the head are torch's own (cuBLAS on a GPU); what is between them is `logit_rows`.
The forward pass makes the logits of a few tokens after another and keeps two numbers a token. The
backward pass makes them again: a few tokens at a time for the gradient of the hidden states, which
sums over the vocabulary, and a few columns at a time for that of the head, which sums over tokens.
So each gradient is one product for each of its parts, with nothing added up in low precision: five
products with the head in a step, where keeping all logits takes three.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from r1_kernels.backend import Backend
from r1_kernels.logit_rows import combine_shards, logit_gradient, logit_statistics

CHUNK_BYTES = 1 << 26
"""Logits held at once, at most, unless one row or column is more: 64 MiB. At 129,280 columns in
bfloat16 that is room for 259 tokens, of which 256 are taken: by its data sheet an H200 then
multiplies for longer than it reads the head (not measured)."""
PRODUCT_TILE = 128
"""Rows or columns that a GPU's matrix product works on as one. 259 rows cost it as much as 384."""


def token_logprobs(
    hidden_TD: Tensor,
    weight_vD: Tensor,
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    vocab_start: int = 0,
    vocab_size: int | None = None,
    group: dist.ProcessGroup | None = None,
    float32_logits: bool = False,
    chunk_bytes: int | None = None,
    backend: Backend | str = Backend.auto,
) -> tuple[Tensor, Tensor]:
    """Log-probability of each target, and entropy, under the logits hidden_TD @ weight_vD.T.

    Defined by `reference.token_logprobs`, which makes all logits at once.

    Args:
        hidden_TD: any float dtype; carries a gradient.
        weight_vD: rows vocab_start .. vocab_start + v of the head, at least one, of the same
            dtype; carries a gradient.
        targets_T: int64. A target outside the vocabulary gets -inf.
        temperature: what the logits are divided by, > 0 and finite.
        vocab_size: rows of the head from this one on are padding, of probability 0.
        group: the ranks that hold the other rows; None: this rank holds all. The gradient of the
            result must be the same on all of them, and the gradient of hidden_TD is this rank's
            part of it, to be summed over the group.
        float32_logits: products with the head are kept in float32, whatever the inputs' dtype.
            Gradients of logits are rounded to the inputs' dtype before they are multiplied.
        chunk_bytes: logits held at once; None: CHUNK_BYTES.
    Returns:
        logprobs_T, with gradient, and entropy_T, without; nats, float32 (float64 for float64). NaN
        for a token whose logits are all -inf, as log_softmax has it.
    Raises:
        ValueError: shapes or dtypes do not match, or the temperature is not such.
    """
    _check(hidden_TD, weight_vD, targets_T, temperature)
    return _TokenLogprobs.apply(
        hidden_TD,
        weight_vD,
        targets_T - vocab_start,
        _Logits(
            scale=1.0 / temperature,
            num_valid=None if vocab_size is None else max(vocab_size - vocab_start, 0),
            float32=float32_logits,
            chunk_bytes=CHUNK_BYTES if chunk_bytes is None else chunk_bytes,
            backend=backend,
        ),
        group,
    )


class _Logits:
    """How logits are made, and how many at once."""

    def __init__(
        self,
        *,
        scale: float,
        num_valid: int | None,
        float32: bool,
        chunk_bytes: int,
        backend: Backend | str,
    ) -> None:
        self.scale, self.num_valid, self.backend = scale, num_valid, backend
        self._float32, self._chunk_bytes = float32, chunk_bytes

    def of(self, hidden_cD: Tensor, weight_bD: Tensor) -> Tensor:
        if not self._float32 or hidden_cD.dtype in (torch.float32, torch.float64):
            return hidden_cD @ weight_bD.T
        if hidden_cD.is_cuda:  # products of the small numbers, added up and kept in float32
            return torch.mm(hidden_cD, weight_bD.T, out_dtype=torch.float32)
        return hidden_cD.float() @ weight_bD.float().T

    def gradient(
        self, hidden: Tensor, weight: Tensor, columns: Tensor, sums_2: Tensor, grad: Tensor,
        *, first_column: int = 0,
    ) -> Tensor:  # fmt: skip
        """Of these logits, in the dtype of the inputs."""
        num_valid = self.num_valid
        grad_cb = logit_gradient(
            self.of(hidden, weight),
            columns - first_column,
            *sums_2,
            grad,
            scale=self.scale,
            num_valid=None if num_valid is None else num_valid - first_column,
            backend=self.backend,
        )
        return grad_cb.to(hidden.dtype)

    def chunks(self, count: int, across: int, dtype: torch.dtype) -> Iterator[slice]:
        """Slices of `count` rows or columns of logits that are `across` long."""
        itemsize = max(dtype.itemsize, 4 if self._float32 else 0)
        step = max(self._chunk_bytes // max(across * itemsize, 1), 1)
        if step > PRODUCT_TILE:
            step -= step % PRODUCT_TILE
        return (slice(start, start + step) for start in range(0, count, step))


class _TokenLogprobs(torch.autograd.Function):
    """Saves its inputs and a number for each token."""

    @staticmethod
    def forward(ctx, hidden_TD, weight_vD, columns_T, logits, group):
        num_tokens, num_columns = hidden_TD.shape[0], weight_vD.shape[0]
        dtype = torch.promote_types(hidden_TD.dtype, torch.float32)
        statistics_4T = torch.empty(4, num_tokens, dtype=dtype, device=hidden_TD.device)
        for rows in logits.chunks(num_tokens, num_columns, hidden_TD.dtype):
            statistics_4T[:, rows] = logit_statistics(
                logits.of(hidden_TD[rows], weight_vD),
                columns_T[rows],
                scale=logits.scale,
                num_valid=logits.num_valid,
                backend=logits.backend,
            )
        peak_T, log_sum_T, entropy_T, target_T = combine_shards(statistics_4T, group)
        ctx.save_for_backward(hidden_TD, weight_vD, columns_T, torch.stack([peak_T, log_sum_T]))
        ctx.logits = logits
        ctx.mark_non_differentiable(entropy_T)
        return target_T - peak_T - log_sum_T, entropy_T

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_T, _grad_entropy_T):
        hidden_TD, weight_vD, columns_T, sums_2T = ctx.saved_tensors
        logits: _Logits = ctx.logits
        num_tokens, num_columns = hidden_TD.shape[0], weight_vD.shape[0]
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        grad_hidden_TD = torch.empty_like(hidden_TD) if of_hidden else None
        grad_weight_vD = torch.empty_like(weight_vD) if of_weight else None
        row_chunks = list(logits.chunks(num_tokens, num_columns, hidden_TD.dtype))
        for rows in row_chunks if of_hidden or len(row_chunks) == 1 else ():
            grad_cv = logits.gradient(
                hidden_TD[rows], weight_vD, columns_T[rows], sums_2T[:, rows], grad_T[rows]
            )
            if of_hidden:
                torch.mm(grad_cv, weight_vD, out=grad_hidden_TD[rows])
            if of_weight and len(row_chunks) == 1:  # these are all logits: both at once
                torch.mm(grad_cv.T, hidden_TD, out=grad_weight_vD)
        if of_weight and len(row_chunks) != 1:
            for columns in logits.chunks(num_columns, num_tokens, hidden_TD.dtype):
                grad_Tb = logits.gradient(
                    hidden_TD,
                    weight_vD[columns],
                    columns_T,
                    sums_2T,
                    grad_T,
                    first_column=columns.start,
                )
                torch.mm(grad_Tb.T, hidden_TD, out=grad_weight_vD[columns])
        return grad_hidden_TD, grad_weight_vD, None, None, None


def _check(hidden_TD: Tensor, weight_vD: Tensor, targets_T: Tensor, temperature: float) -> None:
    if not 0 < temperature < math.inf:  # nor a NaN
        raise ValueError(f"temperature must be > 0, got {temperature}")
    if targets_T.dtype is not torch.int64:
        raise ValueError(f"targets_T must be torch.int64, got {targets_T.dtype}")
    fits = (
        hidden_TD.dim() == weight_vD.dim() == 2
        and hidden_TD.shape[1] == weight_vD.shape[1]
        and targets_T.shape == hidden_TD.shape[:1]
        and weight_vD.shape[0] > 0
        and hidden_TD.is_floating_point()
    )
    if not fits or hidden_TD.dtype != weight_vD.dtype:
        raise ValueError(
            f"hidden_TD {list(hidden_TD.shape)} {hidden_TD.dtype}, weight_vD "
            f"{list(weight_vD.shape)} {weight_vD.dtype} and targets_T {list(targets_T.shape)} do "
            "not fit together"
        )
