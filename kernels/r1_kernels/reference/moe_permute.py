"""Tokens to rows grouped by expert, and back, by indexing; gradients are autograd's.

T tokens   K copies of each   D width   M rows, padding included
"""

from __future__ import annotations

import torch
from torch import Tensor


def permute(tokens_TD: Tensor, rows_TK: Tensor, copies_M: Tensor) -> Tensor:
    """[M, D]: each row a copy of its token; zeros where copies_M is -1."""
    # -1 // K is -1: the row of zeros that is put behind the last token.
    return _with_zeros(tokens_TD)[copies_M // rows_TK.shape[1]]


def unpermute(
    rows_MD: Tensor, rows_TK: Tensor, copies_M: Tensor, weights_TK: Tensor | None
) -> Tensor:
    """[T, D]: the sum of each token's rows times their weights, added up in float32 at least."""
    dtype = torch.promote_types(rows_MD.dtype, torch.float32)
    copies_TKD = _with_zeros(rows_MD)[rows_TK].to(dtype)
    if weights_TK is not None:
        copies_TKD = copies_TKD * weights_TK[..., None].to(dtype)
    return copies_TKD.sum(dim=1).to(rows_MD.dtype)


def _with_zeros(matrix: Tensor) -> Tensor:
    return torch.nn.functional.pad(matrix, (0, 0, 0, 1))
