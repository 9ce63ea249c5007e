"""Plans by hand and by property, and rows -> micro-batch -> rows."""

from __future__ import annotations

import random

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.data.packing import (
    balance_rows,
    build_micro_batch,
    pack_best_fit,
    pack_equal_counts,
)
from megatron_r1.errors import DataError
from megatron_r1.types import TrainRow


def random_lengths(seed: int) -> tuple[list[int], int]:
    """Up to 60 rows, none longer than the capacity that comes with them."""
    rng = random.Random(seed)
    capacity = rng.choice([64, 100, 1000])
    return [rng.randint(1, capacity) for _ in range(rng.randint(0, 60))], capacity


def tokens(rows: list[int], lengths: list[int]) -> int:
    return sum(lengths[row] for row in rows)


def placed(bins: list[list[int]]) -> list[int]:
    return sorted(row for rows in bins for row in rows)


def test_best_fit_takes_the_fullest_bin_that_has_room():
    # 7 and 6 open bins with 3 and 4 left; 4 fills the second, 3 the first; 2 opens a third.
    assert pack_best_fit([2, 7, 3, 6, 4], capacity=10) == [[1, 2], [3, 4], [0]]


def test_best_fit_is_neither_worst_fit_nor_first_fit():
    # 6 and 5 leave 4 and 5: the 4 fills the first, where a worst fit takes the second.
    assert pack_best_fit([6, 5, 4], capacity=10) == [[0, 2], [1]]
    # 12 leaves 8; 10 and 9 leave 1, which the last row fills. A first fit looks at the 8 first.
    assert pack_best_fit([12, 10, 9, 1], capacity=20) == [[0], [1, 2, 3]]


def test_a_row_longer_than_the_capacity_names_both_and_the_setting():
    with pytest.raises(DataError, match=r"11 tokens.*parallel.max_tokens_per_microbatch = 10"):
        pack_best_fit([3, 11], capacity=10)


@pytest.mark.parametrize("seed", range(20))
def test_best_fit_places_every_row_once_within_capacity_and_wastes_little(seed):
    lengths, capacity = random_lengths(seed)
    bins = pack_best_fit(lengths, capacity)
    assert placed(bins) == list(range(len(lengths)))
    assert all(0 < tokens(rows, lengths) <= capacity for rows in bins)
    # Any two bins together overflow one: otherwise the later would have gone into the earlier.
    loads = sorted(tokens(rows, lengths) for rows in bins)
    assert len(bins) < 2 or loads[0] + loads[1] > capacity


def test_balance_gives_the_longest_row_to_the_emptiest_replica():
    # 5 -> 0, 4 -> 1, 3 -> 1 (4 < 5), 3 -> 0 (5 < 7), 1 -> 1 (7 < 8)
    assert balance_rows([3, 5, 1, 4, 3], num_replicas=2) == [[1, 4], [3, 0, 2]]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("num_replicas", [1, 3, 8])
def test_balance_gives_every_row_once_and_evenly(seed, num_replicas):
    lengths, _ = random_lengths(seed)
    replicas = balance_rows(lengths, num_replicas)
    assert len(replicas) == num_replicas
    assert placed(replicas) == list(range(len(lengths)))
    loads = [tokens(rows, lengths) for rows in replicas]
    assert max(loads) - min(loads) <= max(lengths, default=0)


def test_equal_counts_split_the_fullest_bin_of_several_rows():
    # Best fit: [[0], [1, 2]]. The lone 9 cannot be split; 4 and 4 can.
    assert pack_equal_counts([9, 4, 4], capacity=10, num_bins=3) == [[0], [1], [2]]
    assert pack_equal_counts([9, 4, 4], capacity=10, num_bins=5) == [[0], [1], [2], [], []]
    assert pack_equal_counts([], capacity=10, num_bins=2) == [[], []]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("extra", [0, 1, 7, 100])
def test_equal_counts_are_exact_and_leave_no_bin_empty_that_a_row_could_fill(seed, extra):
    lengths, capacity = random_lengths(seed)
    num_bins = len(pack_best_fit(lengths, capacity)) + extra
    bins = pack_equal_counts(lengths, capacity, num_bins=num_bins)
    assert len(bins) == num_bins
    assert placed(bins) == list(range(len(lengths)))
    assert all(tokens(rows, lengths) <= capacity for rows in bins)
    assert sum(1 for rows in bins if rows) == min(num_bins, len(lengths))


def test_fewer_bins_than_the_rows_need_are_refused():
    with pytest.raises(ValueError, match="2 rows need 2 bins, asked for 1"):
        pack_equal_counts([9, 9], capacity=10, num_bins=1)


def test_a_micro_batch_by_hand():
    rows = [
        TrainRow(
            tokens_L=torch.tensor([5, 6, 7]),
            loss_mask_L=torch.tensor([False, True, True]),
            advantage=-1.5,
            weight=0.25,
            logprobs_old_L=torch.tensor([0.0, -1.0, -2.0]),
        ),
        TrainRow(
            tokens_L=torch.tensor([8, 9]), loss_mask_L=torch.tensor([False, True]), weight=0.5
        ),
    ]
    micro = build_micro_batch(rows, pad_to_multiple=4, pad_token=1)
    assert micro.tokens_T.tolist() == [5, 6, 7, 8, 9, 1, 1, 1]
    assert micro.positions_T.tolist() == [0, 1, 2, 0, 1, 0, 1, 2]
    assert micro.seq_lengths == (3, 2, 3)
    assert micro.num_padding == 3
    assert micro.loss_mask_T.tolist() == [False, True, True, False, True] + [False] * 3
    assert micro.weights_T.tolist() == [0.0, 0.25, 0.25, 0.0, 0.5, 0.0, 0.0, 0.0]
    assert micro.advantages_T.tolist() == [-1.5] * 3 + [0.0] * 5
    assert micro.logprobs_old_T.tolist() == [0.0, -1.0, -2.0] + [0.0] * 5
    assert micro.logprobs_ref_T.tolist() == [0.0] * 8
    assert micro.weights_T.dtype == micro.advantages_T.dtype == torch.float32


def test_no_padding_where_none_is_needed_and_nothing_else_without_rows():
    row = TrainRow(tokens_L=torch.arange(4), loss_mask_L=torch.ones(4, dtype=torch.bool))
    full = build_micro_batch([row], pad_to_multiple=4, pad_token=1)
    assert (full.seq_lengths, full.num_padding) == ((4,), 0)
    assert full.logprobs_old_T is None  # no row has them
    empty = build_micro_batch([], pad_to_multiple=4, pad_token=1)
    assert (empty.seq_lengths, empty.num_padding) == ((4,), 4)
    assert empty.tokens_T.tolist() == [1] * 4
    assert empty.tokens_T.dtype == empty.positions_T.dtype == torch.int64
    assert empty.weights_T.tolist() == [0.0] * 4


@pytest.mark.parametrize("seed", range(5))
def test_rows_come_back_from_their_micro_batches(seed):
    lengths, capacity = random_lengths(seed)
    generator = torch.Generator().manual_seed(seed)
    rows = [_random_row(length, generator) for length in lengths]
    bins = pack_best_fit(lengths, capacity)
    for bin_ in bins:
        micro = build_micro_batch([rows[i] for i in bin_], pad_to_multiple=16, pad_token=0)
        assert micro.tokens_T.numel() % 16 == 0
        assert sum(micro.seq_lengths) == micro.tokens_T.numel()
        parts = {
            name: getattr(micro, f"{name}_T").split(micro.seq_lengths)
            for name in ("tokens", "loss_mask", "logprobs_rollout", "logprobs_old", "logprobs_ref")
        }
        for position, row in enumerate(rows[i] for i in bin_):
            for name, values in parts.items():
                assert_close(values[position], getattr(row, f"{name}_L"), rtol=0, atol=0)


def _random_row(length: int, generator: torch.Generator) -> TrainRow:
    return TrainRow(
        tokens_L=torch.randint(100, (length,), generator=generator),
        loss_mask_L=torch.rand(length, generator=generator) < 0.7,
        logprobs_rollout_L=torch.randn(length, generator=generator),
        logprobs_old_L=torch.randn(length, generator=generator),
        logprobs_ref_L=torch.randn(length, generator=generator),
    )
