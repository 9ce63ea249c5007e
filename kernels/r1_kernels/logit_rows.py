"""Rows of logits, over a vocabulary that may be split over ranks.

    T rows of logits     v columns of the vocabulary on this rank

A rank adds up what its own columns say of each row (`logit_statistics`), ranks exchange four
numbers a row (`combine_shards`), and each makes the gradient of its own columns.
"""

from __future__ import annotations

from types import ModuleType

import torch
import torch.distributed as dist
from torch import Tensor

from r1_kernels.backend import Backend, takes_triton
from r1_kernels.reference import logit_rows as reference


def logit_statistics(
    logits_Tv: Tensor,
    columns_T: Tensor,
    *,
    scale: float = 1.0,
    num_valid: int | None = None,
    backend: Backend | str = Backend.auto,
) -> Tensor:
    """Peak, sum, entropy sum and target of each row, float32: `reference.logit_statistics`.

    Args:
        logits_Tv: any float dtype; the last dimension is contiguous. -inf is probability 0.
        columns_T: int64; each row's target, counted from this rank's first column. A target that
            lies elsewhere is another rank's.
        scale: what the logits are multiplied by: 1 / temperature.
        num_valid: columns from here on are padding, of probability 0.
    Returns: [4, T].
    Raises:
        ValueError: shapes, strides or targets' dtype that do not fit.
    """
    _check_rows(logits_Tv, columns_T=columns_T)
    rows = _implementation(backend, logits_Tv)
    return rows.logit_statistics(logits_Tv, columns_T, scale=scale, num_valid=num_valid)


def logit_gradient(
    logits_Tv: Tensor,
    columns_T: Tensor,
    peak_T: Tensor,
    log_sum_T: Tensor,
    grad_T: Tensor,
    *,
    scale: float = 1.0,
    num_valid: int | None = None,
    backend: Backend | str = Backend.auto,
) -> Tensor:
    """The gradient of sum(grad_T * log p(target_T)); overwrites the logits and returns them.

    Args:
        peak_T, log_sum_T: of the whole vocabulary, from `combine_shards`.
    Raises:
        ValueError: shapes, strides or targets' dtype that do not fit.
    """
    _check_rows(logits_Tv, columns_T=columns_T, peak_T=peak_T, log_sum_T=log_sum_T, grad_T=grad_T)
    rows = _implementation(backend, logits_Tv)
    return rows.logit_gradient(
        logits_Tv, columns_T, peak_T, log_sum_T, grad_T, scale=scale, num_valid=num_valid
    )


def combine_shards(
    statistics_4T: Tensor, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(peak, log of the sum of exponentials below it, entropy, target's logit) of the whole
    vocabulary, in nats; from each rank's statistics, in two all-reduces. None: this rank holds all
    columns. The peak is apart from the log, whose digits a large one would swallow.

    Moving a shard to the common peak multiplies its e by f = exp(its peak - common peak), so that
    -sum (fe) log (fe) = f (-sum e log e) + (-f log f) sum e. With S the sum of all fe,
    p = fe / S and the entropy is -sum (fe) log (fe) / S + log S.
    """
    shard_peak_T, shard_sum_T, shard_entr_T, target_T = statistics_4T
    peak_T, target_T = _all_reduce(torch.stack([shard_peak_T, target_T]), dist.ReduceOp.MAX, group)
    factor_T = torch.exp(shard_peak_T - peak_T)
    moved_sum_T = factor_T * shard_sum_T
    moved_entr_T = factor_T * shard_entr_T + torch.special.entr(factor_T) * shard_sum_T
    sum_T, entr_T = _all_reduce(torch.stack([moved_sum_T, moved_entr_T]), dist.ReduceOp.SUM, group)
    return peak_T, sum_T.log(), entr_T / sum_T + sum_T.log(), target_T


def _implementation(backend: Backend | str, tensor: Tensor) -> ModuleType:
    if takes_triton(backend, tensor):
        from r1_kernels.triton import logit_rows as compiled

        return compiled
    return reference


def _check_rows(logits_Tv: Tensor, *, columns_T: Tensor, **per_row: Tensor) -> None:
    if logits_Tv.dim() != 2 or (logits_Tv.numel() and logits_Tv.stride(1) != 1):
        raise ValueError(
            f"logits_Tv must be a matrix with contiguous rows, got shape {list(logits_Tv.shape)} "
            f"and strides {logits_Tv.stride()}"
        )
    if not logits_Tv.shape[1]:
        raise ValueError(f"logits_Tv needs at least one column, got shape {list(logits_Tv.shape)}")
    if columns_T.dtype is not torch.int64:
        raise ValueError(f"columns_T must be torch.int64, got {columns_T.dtype}")
    per_row = dict(columns_T=columns_T, **per_row)
    shapes = {name: list(tensor.shape) for name, tensor in per_row.items()}
    if any(shape != [logits_Tv.shape[0]] for shape in shapes.values()):
        raise ValueError(f"{shapes} for logits_Tv of shape {list(logits_Tv.shape)}")


def _all_reduce(
    values: Tensor, op: dist.ReduceOp.RedOpType, group: dist.ProcessGroup | None
) -> Tensor:
    if group is not None:
        dist.all_reduce(values, op, group)
    return values
