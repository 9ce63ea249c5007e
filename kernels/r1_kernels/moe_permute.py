"""Tokens to the experts they were routed to, and back.

    T tokens   K experts of each   D width   E experts   M rows, padding included

Rows of one expert stand together and begin at a multiple of `multiple`, filled up with rows of
zeros: FP8 products of grouped experts take whole tiles of 128 rows (and Transformer Engine's 16),
and the scale of a tile never spans two experts.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType

import torch
from torch import Tensor

from r1_kernels.backend import Backend, takes_triton
from r1_kernels.reference import moe_permute as reference


@dataclass(frozen=True, eq=False)
class Placement:
    """Where each copy of each token goes."""

    rows_TK: Tensor
    """int64: its row; -1 for a copy that goes nowhere."""
    copies_M: Tensor
    """int64: which copy stands in a row, t * K + k; -1 for padding."""
    rows_per_expert_E: Tensor
    """int64, padding included; they add up to M."""

    @property
    def num_rows(self) -> int:
        return self.copies_M.shape[0]


def place(experts_TK: Tensor, num_experts: int, *, multiple: int = 128) -> Placement:
    """Rows for each token's experts, in the order of experts and then of tokens.

    Args:
        experts_TK: [T, K], int64 in [0, E), or -1 for none.
        multiple: each expert's rows are filled up to a multiple of it; an expert without tokens has
            none. 1 pads nothing.
    Raises:
        ValueError: experts of another shape or dtype or out of range, or another `multiple`.
    """
    if experts_TK.dim() != 2:
        raise ValueError(f"experts must be a matrix, [T, K], got shape {list(experts_TK.shape)}")
    if experts_TK.dtype is not torch.int64:
        raise ValueError(f"experts must be int64, got {experts_TK.dtype}")
    if not isinstance(multiple, int) or multiple < 1:
        raise ValueError(f"multiple must be an integer >= 1, got {multiple}")
    experts_C = experts_TK.flatten()
    if experts_C.numel():
        lowest, highest = (int(x) for x in torch.aminmax(experts_C))
        if lowest < -1 or highest >= num_experts:
            raise ValueError(f"experts must be in [-1, {num_experts}), got {lowest} to {highest}")
    order_C = experts_C.argsort(stable=True)
    # Copies that go nowhere are counted as those of an expert before the first.
    counts = torch.bincount(experts_C + 1, minlength=num_experts + 1)
    nowhere, counts_E = counts[:1], counts[1:]
    padded_E = -(-counts_E // multiple) * multiple
    first_row_E = padded_E.cumsum(0) - padded_E
    first_copy_E = nowhere + counts_E.cumsum(0) - counts_E
    sorted_C = experts_C[order_C]
    safe_C = sorted_C.clamp(min=0)
    places_C = torch.arange(len(order_C), device=order_C.device)
    rows_C = torch.where(sorted_C >= 0, first_row_E[safe_C] + places_C - first_copy_E[safe_C], -1)
    rows_TK = torch.empty_like(experts_C).scatter_(0, order_C, rows_C).view(experts_TK.shape)
    copies_M = order_C.new_full((int(padded_E.sum()),), -1)
    copies_M[rows_C[rows_C >= 0]] = order_C[rows_C >= 0]
    return Placement(rows_TK=rows_TK, copies_M=copies_M, rows_per_expert_E=padded_E)


def permute(
    tokens_TD: Tensor, placement: Placement, *, backend: Backend | str = Backend.auto
) -> Tensor:
    """Copies of tokens in their rows, [M, D]; zeros in the padding. Its gradient is `unpermute`.

    Raises:
        ValueError: the placement is of another number of tokens.
    """
    _check(tokens_TD, "tokens_TD", placement.rows_TK.shape[0])
    return _implementation(backend, tokens_TD).permute(
        tokens_TD, placement.rows_TK, placement.copies_M
    )


def unpermute(
    rows_MD: Tensor,
    placement: Placement,
    weights_TK: Tensor | None = None,
    *,
    backend: Backend | str = Backend.auto,
) -> Tensor:
    """The sum of each token's rows, [T, D], added up in float32 and rounded once.

    Args:
        weights_TK: what the rows are multiplied by, the router's weights; None: by 1. Carries a
            gradient, as rows_MD does.
    Raises:
        ValueError: shapes that do not fit the placement.
    """
    _check(rows_MD, "rows_MD", placement.num_rows)
    if weights_TK is not None and weights_TK.shape != placement.rows_TK.shape:
        raise ValueError(
            f"weights of shape {list(weights_TK.shape)} for a placement of "
            f"{list(placement.rows_TK.shape)}"
        )
    return _implementation(backend, rows_MD).unpermute(
        rows_MD, placement.rows_TK, placement.copies_M, weights_TK
    )


def _check(matrix: Tensor, name: str, num_rows: int) -> None:
    if matrix.dim() != 2 or matrix.shape[0] != num_rows:
        raise ValueError(f"{name} has shape {list(matrix.shape)}, the placement {num_rows} rows")


def _implementation(backend: Backend | str, tensor: Tensor) -> ModuleType:
    if takes_triton(backend, tensor):
        from r1_kernels.triton import moe_permute as compiled

        return compiled
    return reference
