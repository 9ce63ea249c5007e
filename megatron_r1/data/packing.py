"""Rows to micro-batches: balance over replicas, pack into a capacity, concatenate.

Follows DeepSeek-R1 (arXiv:2501.12948v2) supplement B.1: rows are sorted by length and distributed
over the data-parallel replicas, each replica packs its own with Best-Fit, and the numbers of
micro-batches are made equal, because pipelines and collectives need every replica to run the same
number:

    shares = balance_rows(lengths, num_replicas)                     one list of rows a replica
    num_bins = max(len(pack_best_fit(lengths of share, capacity)) for share in shares)
    bins = pack_equal_counts(lengths of this share, capacity, num_bins=num_bins)
    micros = [build_micro_batch(rows of bin, ...) for bin in bins]

A plan is a list of lists of row numbers, and depends on nothing but the lengths.
"""

from __future__ import annotations

import heapq
from bisect import bisect_left, insort
from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_r1.errors import DataError
from megatron_r1.types import MicroBatch, TrainRow


def balance_rows(lengths: Sequence[int], num_replicas: int) -> list[list[int]]:
    """Give every row to one replica: the longest first, each to the replica with the fewest tokens.

    The token counts of two replicas differ by at most the longest row. With fewer rows than
    replicas, some get none.
    """
    replicas: list[list[int]] = [[] for _ in range(num_replicas)]
    loads = [(0, replica) for replica in range(num_replicas)]
    for row in _longest_first(lengths):
        tokens, replica = loads[0]
        replicas[replica].append(row)
        heapq.heapreplace(loads, (tokens + lengths[row], replica))
    return replicas


def pack_best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Best-fit decreasing: the longest row first, each into the fullest bin that still has room.

    Args:
        capacity: tokens of one micro-batch; a multiple of what `build_micro_batch` pads to.
    Raises:
        DataError: a row is longer than the capacity.
    """
    bins: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, bin), the fullest bin first
    for row in _longest_first(lengths):
        length = lengths[row]
        if length > capacity:
            raise DataError(
                f"row {row} has {length} tokens, more than "
                f"parallel.max_tokens_per_microbatch = {capacity}. "
                f"Set that to {length} or more, or allow fewer tokens in prompt and response."
            )
        best = bisect_left(room, (length, 0))
        if best < len(room):
            left, bin_ = room.pop(best)
        else:
            left, bin_ = capacity, len(bins)
            bins.append([])
        bins[bin_].append(row)
        insort(room, (left - length, bin_))
    return bins


def pack_equal_counts(lengths: Sequence[int], capacity: int, *, num_bins: int) -> list[list[int]]:
    """Exactly num_bins bins: best fit, then the fullest bins of several rows are split in two.

    When no bin has several rows left, the rest stay empty; an empty micro-batch is padding alone.

    Raises:
        DataError: a row is longer than the capacity.
        ValueError: best fit needs more than num_bins bins.
    """
    bins = pack_best_fit(lengths, capacity)
    if len(bins) > num_bins:
        raise ValueError(f"{len(lengths)} rows need {len(bins)} bins, asked for {num_bins}")
    while len(bins) < num_bins:
        divisible = [index for index, rows in enumerate(bins) if len(rows) > 1]
        if not divisible:
            return bins + [[] for _ in range(num_bins - len(bins))]
        fullest = max(divisible, key=lambda index: sum(lengths[row] for row in bins[index]))
        rows = bins[fullest]
        halves = balance_rows([lengths[row] for row in rows], 2)
        bins[fullest], half = ([rows[i] for i in half] for half in halves)
        bins.append(half)
    return bins


def build_micro_batch(
    rows: Sequence[TrainRow], *, pad_to_multiple: int, pad_token: int
) -> MicroBatch:
    """Concatenate rows, in their order, into one stream of a length that pad_to_multiple divides.

    Padding comes last, as a sequence of its own with weight 0; without rows it is pad_to_multiple
    tokens of it. Optional numbers that a row lacks become zeros; old log-probabilities that all
    rows lack are left out.
    """
    num_tokens = sum(row.num_tokens for row in rows)
    num_padding = -num_tokens % pad_to_multiple if rows else pad_to_multiple
    sequences = [*rows, _padding_row(num_padding, pad_token, like=rows)] if num_padding else [*rows]

    def per_token(value: float, row: TrainRow) -> Tensor:
        return torch.full_like(row.tokens_L, value, dtype=torch.float32)

    def values(values_L: Tensor | None, row: TrainRow, default: float = 0.0) -> Tensor:
        if values_L is None:
            return per_token(default, row)
        # What a model said is on its device; padding, which none has seen, is where the tokens are.
        return values_L.to(row.tokens_L.device, torch.float32)

    return MicroBatch(
        tokens_T=torch.cat([row.tokens_L for row in sequences]),
        positions_T=torch.cat(
            [torch.arange(row.num_tokens, device=row.tokens_L.device) for row in sequences]
        ),
        seq_lengths=tuple(row.num_tokens for row in sequences),
        num_padding=num_padding,
        loss_mask_T=torch.cat([row.loss_mask_L for row in sequences]),
        weights_T=torch.cat([row.loss_mask_L * per_token(row.weight, row) for row in sequences]),
        advantages_T=torch.cat([values(row.advantages_L, row, row.advantage) for row in sequences]),
        labels_T=torch.cat([per_token(row.label, row) for row in sequences]),
        logprobs_rollout_T=torch.cat([values(row.logprobs_rollout_L, row) for row in sequences]),
        logprobs_old_T=(
            torch.cat([values(row.logprobs_old_L, row) for row in sequences])
            if not rows or any(row.logprobs_old_L is not None for row in rows)
            else None
        ),
        logprobs_ref_T=torch.cat([values(row.logprobs_ref_L, row) for row in sequences]),
        values_old_T=torch.cat([values(row.values_old_L, row) for row in sequences]),
        returns_T=torch.cat([values(row.returns_L, row) for row in sequences]),
        teacher_logits_Tv=_end_to_end([row.teacher_logits_Lv for row in sequences], sequences, 0),
        kept_counts_T=_end_to_end([row.kept_counts_L for row in sequences], sequences, 0),
        kept_ids_J=_joined([row.kept_ids_J for row in sequences]),
        routed_experts_TMK=_end_to_end(
            [row.routed_experts_LMK for row in sequences], sequences, -1
        ),
    )


def _end_to_end(
    values: Sequence[Tensor | None], rows: Sequence[TrainRow], fill: float
) -> Tensor | None:
    """[T, ...] of the rows' values, in their own type; `fill` where a row has none."""
    like = next((each for each in values if each is not None), None)
    if like is None:
        return None
    return torch.cat(
        [
            like.new_full((row.num_tokens, *like.shape[1:]), fill) if each is None else each
            for each, row in zip(values, rows, strict=True)
        ]
    )


def _joined(values: Sequence[Tensor | None]) -> Tensor | None:
    present = [each for each in values if each is not None]
    return torch.cat(present) if present else None


def _padding_row(num_tokens: int, pad_token: int, *, like: Sequence[TrainRow]) -> TrainRow:
    device = like[0].tokens_L.device if like else None
    return TrainRow(
        tokens_L=torch.full((num_tokens,), pad_token, dtype=torch.int64, device=device),
        loss_mask_L=torch.zeros(num_tokens, dtype=torch.bool, device=device),
    )


def _longest_first(lengths: Sequence[int]) -> list[int]:
    """Row numbers by falling length; rows of one length keep their order."""
    return sorted(range(len(lengths)), key=lambda row: -lengths[row])
