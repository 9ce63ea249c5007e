from __future__ import annotations

import torch
from torch.testing import assert_close

from megatron_r1.algos.advantages import group_advantages, zero_std_groups
from megatron_r1.config.algo import AdvantageNorm, GrpoConfig


def test_two_right_and_two_wrong_give_plus_and_minus_one():
    # mean 0.5, population std 0.5. The sample std would give 0.866.
    rewards_PG = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    advantages_PG = group_advantages(rewards_PG, config=GrpoConfig(advantage_eps=0.0))
    assert_close(advantages_PG, torch.tensor([[1.0, -1.0, -1.0, 1.0]]))


def test_eps_is_added_to_the_standard_deviation():
    rewards_PG = torch.tensor([[1.0, 0.0]])
    advantages_PG = group_advantages(rewards_PG, config=GrpoConfig(advantage_eps=0.5))
    assert_close(advantages_PG, torch.tensor([[0.5, -0.5]]))


def test_groups_do_not_mix():
    # mean 2 and std sqrt(2): +-sqrt(2), and 0.
    rewards_PG = torch.tensor([[0.0, 2.0, 2.0, 4.0], [1.0, 0.0, 0.0, 1.0]])
    advantages_PG = group_advantages(rewards_PG, config=GrpoConfig(advantage_eps=0.0))
    assert_close(advantages_PG[0], torch.tensor([-(2**0.5), 0.0, 0.0, 2**0.5]))
    assert_close(advantages_PG[1], torch.tensor([1.0, -1.0, -1.0, 1.0]))


def test_without_norm_the_rewards_are_only_centred():
    rewards_PG = torch.tensor([[0.0, 2.0, 2.0, 4.0]])
    config = GrpoConfig(advantage_norm=AdvantageNorm.none)
    assert_close(group_advantages(rewards_PG, config=config), torch.tensor([[-2.0, 0.0, 0.0, 2.0]]))


def test_equal_rewards_give_exactly_zero_though_their_mean_is_rounded():
    rewards_PG = torch.full((1, 11), 0.1)
    assert (rewards_PG.mean(dim=1) != 0.1).any()  # otherwise this test would test nothing
    for norm in AdvantageNorm:
        config = GrpoConfig(advantage_norm=norm, advantage_eps=0.0)
        assert (group_advantages(rewards_PG, config=config) == 0).all()


def test_zero_std_groups_are_those_with_one_reward():
    rewards_PG = torch.tensor([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    assert zero_std_groups(rewards_PG).tolist() == [True, False, True]
