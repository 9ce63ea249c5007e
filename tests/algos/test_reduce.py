from __future__ import annotations

import torch

from megatron_r1.algos.reduce import masked_mean, mean_parts, token_weight
from megatron_r1.config.algo import LossReduction

# A step of four rollouts with 1, 3, 0 and 4 trainable tokens, of at most 5.
NUM_TOKENS = [1, 3, 0, 4]


def weights(reduction: LossReduction) -> list[float]:
    return [
        token_weight(
            num_tokens,
            reduction=reduction,
            num_rollouts=4,
            total_tokens=8,
            max_response_tokens=5,
        )
        for num_tokens in NUM_TOKENS
    ]


def test_rollout_mean_gives_each_rollout_the_same_say():
    # The empty rollout has no say, and the others have no more for it: 1/4 each.
    assert weights(LossReduction.rollout_mean) == [1 / 4, 1 / 12, 0.0, 1 / 16]


def test_token_mean_gives_each_token_the_same_say():
    assert weights(LossReduction.token_mean) == [1 / 8, 1 / 8, 0.0, 1 / 8]


def test_constant_divides_by_rollouts_times_the_longest_response():
    assert weights(LossReduction.constant) == [1 / 20, 1 / 20, 0.0, 1 / 20]


def test_masked_mean_looks_at_nothing_else():
    values = torch.tensor([1.0, torch.nan, 3.0, torch.inf])
    assert masked_mean(values, torch.tensor([True, False, True, False])) == 2.0
    assert masked_mean(values, torch.zeros(4, dtype=torch.bool)) == 0.0


def test_mean_parts_add_up_to_the_mean_of_the_whole():
    first, second = mean_parts(torch.tensor([1.0, 2.0, 6.0])), mean_parts(torch.tensor([3.0]))
    assert (first[0] + second[0]) / (first[1] + second[1]) == 3.0
    assert mean_parts(torch.tensor([True, False])) == (1.0, 2.0)
