"""Statistics and gradients of rows of logits: one read, or one read and one write, of each logit.

c rows of logits     v columns     B columns of a block
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1_kernels.triton import is_interpreted
from r1_kernels.triton.casts import narrow

BLOCK = 4096
"""Columns worked on at once. Not tuned on a GPU yet."""


@triton.jit
def _statistics_kernel(
    logits_ptr, columns_ptr, out_ptr, row_stride, num_rows, num_columns, num_valid, scale,
    BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    lowest = -3.4028234663852886e38
    peak = tl.full((), lowest, tl.float32)
    total = tl.zeros((), tl.float32)  # sum of e = exp(z - peak)
    moment = tl.zeros((), tl.float32)  # sum of e * log e
    target_column = tl.load(columns_ptr + row)
    target = tl.full((), -float("inf"), tl.float32)
    for start in range(0, num_columns, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        logits = tl.load(
            logits_ptr + row * row_stride + columns, mask=columns < num_columns, other=-float("inf")
        )
        z = logits.to(tl.float32) * scale
        z = tl.where(columns < num_valid, z, -float("inf"))
        is_target = (columns == target_column) & (columns < num_columns)
        target = tl.maximum(target, tl.max(tl.where(is_target, z, -float("inf")), axis=0))
        higher = tl.maximum(peak, tl.maximum(tl.max(z, axis=0), lowest))
        below = z - higher
        e = tl.exp(below)
        # Sums so far move from the old peak to the new one: e becomes f e, log e becomes
        # log e + log f.
        log_factor = peak - higher
        factor = tl.exp(log_factor)
        moved = tl.where(factor > 0, factor * log_factor, 0.0) * total
        moment = factor * moment + moved + tl.sum(tl.where(e > 0, e * below, 0.0), axis=0)
        total = factor * total + tl.sum(e, axis=0)
        peak = higher
    tl.store(out_ptr + row, peak)
    tl.store(out_ptr + num_rows + row, total)
    tl.store(out_ptr + 2 * num_rows + row, -moment)
    tl.store(out_ptr + 3 * num_rows + row, target)


@triton.jit
def _gradient_kernel(
    logits_ptr, columns_ptr, peak_ptr, log_sum_ptr, grad_ptr, row_stride, num_columns, num_valid,
    scale,
    BLOCK: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    pointers = logits_ptr + row * row_stride + columns
    logits = tl.load(pointers, mask=inside, other=-float("inf"))
    z = tl.where(columns < num_valid, logits.to(tl.float32) * scale, -float("inf"))
    p = tl.exp(z - tl.load(peak_ptr + row) - tl.load(log_sum_ptr + row))
    is_target = columns == tl.load(columns_ptr + row)
    grad = (tl.where(is_target, 1.0, 0.0) - p) * (tl.load(grad_ptr + row) * scale)
    tl.store(pointers, narrow(grad, logits_ptr.dtype.element_ty, EMULATE), mask=inside)


def logit_statistics(
    logits_cv: Tensor, columns_c: Tensor, *, scale: float, num_valid: int | None
) -> Tensor:
    num_rows, num_columns = logits_cv.shape
    out_4c = torch.empty(4, num_rows, dtype=torch.float32, device=logits_cv.device)
    if num_rows:
        _statistics_kernel[(num_rows,)](
            logits_cv,
            columns_c.contiguous(),
            out_4c,
            logits_cv.stride(0),
            num_rows,
            num_columns,
            _num_valid(num_valid, num_columns),
            scale,
            BLOCK=_block(num_columns),
            num_warps=8,
        )
    return out_4c


def logit_gradient(
    logits_cv: Tensor,
    columns_c: Tensor,
    peak_c: Tensor,
    log_sum_c: Tensor,
    grad_c: Tensor,
    *,
    scale: float,
    num_valid: int | None,
) -> Tensor:
    num_rows, num_columns = logits_cv.shape
    block = _block(num_columns)
    if num_rows:
        _gradient_kernel[(num_rows, triton.cdiv(num_columns, block))](
            logits_cv,
            columns_c.contiguous(),
            peak_c.contiguous(),
            log_sum_c.contiguous(),
            grad_c.float().contiguous(),
            logits_cv.stride(0),
            num_columns,
            _num_valid(num_valid, num_columns),
            scale,
            BLOCK=block,
            EMULATE=is_interpreted(),
            num_warps=8,
        )
    return logits_cv


def _num_valid(num_valid: int | None, num_columns: int) -> int:
    return num_columns if num_valid is None else min(max(num_valid, 0), num_columns)


def _block(num_columns: int) -> int:
    """Smaller for the interpreter, so that small cases have several blocks."""
    return min(BLOCK, triton.next_power_of_2(num_columns)) if not is_interpreted() else 64
