"""A stream over context ranks: every token once, equal parts, equal work under a causal mask."""

from __future__ import annotations

import pytest
import torch

from megatron_r1.parallel.context import held_tokens

LENGTHS = [1, 9, 40, 8, 23]


def test_two_ranks_by_hand():
    # 9 tokens in four chunks of 3: rank 0 holds the first and the last, which is padding.
    assert held_tokens([9], 2, 0).tolist() == [0, 1, 2, -1, -1, -1]
    assert held_tokens([9], 2, 1).tolist() == [3, 4, 5, 6, 7, 8]
    # The second sequence starts at token 9: chunks of 1.
    assert held_tokens([9, 4], 2, 0).tolist()[6:] == [9, 12]
    assert held_tokens([9, 4], 2, 1).tolist()[6:] == [10, 11]


@pytest.mark.parametrize("num_ranks", [1, 2, 3, 4, 8])
def test_every_token_is_held_once_by_ranks_of_equal_length(num_ranks):
    parts = [held_tokens(LENGTHS, num_ranks, rank) for rank in range(num_ranks)]
    assert len({len(part) for part in parts}) == 1
    held = torch.cat(parts)
    assert sorted(held[held >= 0].tolist()) == list(range(sum(LENGTHS)))
    # At most 2 x ranks - 1 tokens of padding a sequence.
    assert int((held < 0).sum()) <= len(LENGTHS) * (2 * num_ranks - 1)


@pytest.mark.parametrize("num_ranks", [2, 4])
def test_ranks_attend_to_equally_many_keys(num_ranks):
    # A token at position p sees p + 1 keys: 1 + 2 + ... + 64 over all, shared to the last key.
    work = [int((held_tokens([64], num_ranks, r) + 1).sum()) for r in range(num_ranks)]
    assert work == [64 * 65 // 2 // num_ranks] * num_ranks
