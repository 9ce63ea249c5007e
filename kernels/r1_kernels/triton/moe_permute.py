"""Tokens to rows of experts and back: each number read and written once, none added atomically.

T tokens   K copies of each   D width   M rows, padding included
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1_kernels.triton import is_interpreted
from r1_kernels.triton.casts import narrow

BLOCK = 1024
"""Columns worked on at once. Not tuned on a GPU yet."""


@triton.jit
def _permute_kernel(
    tokens_ptr, copies_ptr, weights_ptr, rows_ptr, width, token_stride,
    K: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    copy = tl.load(copies_ptr + row)
    token = tl.maximum(copy, 0) // K
    numbers = tl.load(
        tokens_ptr + token * token_stride + columns, mask=inside & (copy >= 0), other=0.0
    )
    if HAS_WEIGHTS:
        # Padding has no weight: another copy's, if it is not finite, would make NaN of its zeros.
        weight = tl.load(weights_ptr + copy, mask=copy >= 0, other=0.0).to(tl.float32)
        numbers = narrow(numbers.to(tl.float32) * weight, numbers.dtype, EMULATE)
    tl.store(rows_ptr + row * width + columns, numbers, mask=inside)


@triton.jit
def _unpermute_kernel(
    rows_ptr, places_ptr, weights_ptr, tokens_ptr, width, row_stride,
    K: tl.constexpr, HAS_WEIGHTS: tl.constexpr, BLOCK: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < width
    total = tl.zeros((BLOCK,), tl.float32)
    for k in range(K):
        row = tl.load(places_ptr + token * K + k)
        numbers = tl.load(
            rows_ptr + tl.maximum(row, 0) * row_stride + columns,
            mask=inside & (row >= 0),
            other=0.0,
        ).to(tl.float32)
        if HAS_WEIGHTS:
            numbers *= tl.load(weights_ptr + token * K + k).to(tl.float32)
        total += numbers
    total = narrow(total, tokens_ptr.dtype.element_ty, EMULATE)
    tl.store(tokens_ptr + token * width + columns, total, mask=inside)


@triton.jit
def _weight_gradient_kernel(
    rows_ptr, places_ptr, grad_ptr, out_ptr, width, row_stride, grad_stride,
    K: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of copy k of a token: its row . the token's gradient."""
    copy = tl.program_id(0).to(tl.int64)
    row = tl.load(places_ptr + copy)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, width, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        inside = (columns < width) & (row >= 0)
        numbers = tl.load(
            rows_ptr + tl.maximum(row, 0) * row_stride + columns, mask=inside, other=0.0
        )
        grad = tl.load(grad_ptr + (copy // K) * grad_stride + columns, mask=inside, other=0.0)
        total += numbers.to(tl.float32) * grad.to(tl.float32)
    tl.store(out_ptr + copy, tl.sum(total, axis=0))


class _Permute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, tokens_TD, rows_TK, copies_M):
        ctx.save_for_backward(rows_TK, copies_M)
        return _to_rows(tokens_TD, rows_TK, copies_M, None)

    @staticmethod
    def backward(ctx, grad_MD):
        rows_TK, _ = ctx.saved_tensors
        return _to_tokens(grad_MD, rows_TK, None), None, None


class _Unpermute(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rows_MD, weights_TK, rows_TK, copies_M):
        saved = rows_MD if weights_TK is not None else None
        ctx.save_for_backward(saved, weights_TK, rows_TK, copies_M)
        return _to_tokens(rows_MD, rows_TK, weights_TK)

    @staticmethod
    def backward(ctx, grad_TD):
        rows_MD, weights_TK, rows_TK, copies_M = ctx.saved_tensors
        grad_rows_MD = _to_rows(grad_TD, rows_TK, copies_M, weights_TK)
        grad_weights_TK = None
        if weights_TK is not None and ctx.needs_input_grad[1]:
            grad_weights_TK = _of_weights(rows_MD, rows_TK, grad_TD).to(weights_TK.dtype)
        return grad_rows_MD, grad_weights_TK, None, None


def permute(tokens_TD: Tensor, rows_TK: Tensor, copies_M: Tensor) -> Tensor:
    return _Permute.apply(tokens_TD, rows_TK, copies_M)


def unpermute(
    rows_MD: Tensor, rows_TK: Tensor, copies_M: Tensor, weights_TK: Tensor | None
) -> Tensor:
    return _Unpermute.apply(rows_MD, weights_TK, rows_TK, copies_M)


def _to_rows(
    tokens_TD: Tensor, rows_TK: Tensor, copies_M: Tensor, weights_TK: Tensor | None
) -> Tensor:
    tokens_TD = _with_whole_rows(tokens_TD)
    num_rows, width = copies_M.shape[0], tokens_TD.shape[1]
    rows_MD = tokens_TD.new_empty(num_rows, width)
    if rows_MD.numel():
        block = _block(width)
        _permute_kernel[(num_rows, triton.cdiv(width, block))](
            tokens_TD,
            copies_M,
            None if weights_TK is None else weights_TK.contiguous(),
            rows_MD,
            width,
            tokens_TD.stride(0),
            K=rows_TK.shape[1],
            HAS_WEIGHTS=weights_TK is not None,
            BLOCK=block,
            EMULATE=is_interpreted(),
        )
    return rows_MD


def _to_tokens(rows_MD: Tensor, rows_TK: Tensor, weights_TK: Tensor | None) -> Tensor:
    rows_MD = _with_whole_rows(rows_MD)
    num_tokens, num_copies = rows_TK.shape
    width = rows_MD.shape[1]
    tokens_TD = rows_MD.new_empty(num_tokens, width)
    if tokens_TD.numel():
        block = _block(width)
        _unpermute_kernel[(num_tokens, triton.cdiv(width, block))](
            rows_MD,
            rows_TK.contiguous(),
            None if weights_TK is None else weights_TK.contiguous(),
            tokens_TD,
            width,
            rows_MD.stride(0),
            K=num_copies,
            HAS_WEIGHTS=weights_TK is not None,
            BLOCK=block,
            EMULATE=is_interpreted(),
        )
    return tokens_TD


def _of_weights(rows_MD: Tensor, rows_TK: Tensor, grad_TD: Tensor) -> Tensor:
    rows_MD, grad_TD = _with_whole_rows(rows_MD), _with_whole_rows(grad_TD)
    out_TK = torch.empty(rows_TK.shape, device=rows_MD.device)
    if out_TK.numel():
        _weight_gradient_kernel[(rows_TK.numel(),)](
            rows_MD,
            rows_TK.contiguous(),
            grad_TD,
            out_TK,
            rows_MD.shape[1],
            rows_MD.stride(0),
            grad_TD.stride(0),
            K=rows_TK.shape[1],
            BLOCK=_block(rows_MD.shape[1]),
        )
    return out_TK


def _with_whole_rows(matrix: Tensor) -> Tensor:
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def _block(width: int) -> int:
    """Smaller for the interpreter, so that small cases have several blocks."""
    return min(BLOCK, triton.next_power_of_2(width)) if not is_interpreted() else 16
