"""KL in the reward and normalisation over a phase, by hand and against the definitions."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.config.algo import (
    AdvantageBaseline,
    AdvantageNorm,
    GrpoConfig,
    KlPlace,
    PpoConfig,
)
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.parallel.layout import enter_layout
from megatron_r1.trainers.minibatches import Minibatch
from megatron_r1.trainers.phase_advantages import complete_advantages
from megatron_r1.types import TrainBatch, TrainRow

pytestmark = pytest.mark.megatron


@pytest.fixture
def dp(one_rank):
    return enter_layout(ParallelConfig(), seed=1).dp


def row_of(advantage: float, kl: list[float], group: int = 0) -> TrainRow:
    """One prompt token, then a token for each KL; the reference is the old policy less that."""
    size = 1 + len(kl)
    old_L = torch.full((size,), -1.0)
    return TrainRow(
        tokens_L=torch.zeros(size, dtype=torch.int64),
        loss_mask_L=torch.arange(size) > 0,
        group=group,
        advantage=advantage,
        logprobs_old_L=old_L,
        logprobs_ref_L=old_L - torch.tensor([9.0, *kl]),
    )


def completed(rows: list[TrainRow], config: GrpoConfig, dp) -> list[TrainRow]:
    """With the rows dealt to two minibatches."""
    dealt = [
        Minibatch(TrainBatch(part), num_rollouts=2)
        for part in (tuple(rows[::2]), tuple(rows[1::2]))
    ]
    done = [m.batch.rows for m in complete_advantages(dealt, config, dp)]
    return [done[i % 2][i // 2] for i in range(len(rows))]


def test_grpo_needs_nothing_of_it(dp):
    rows = [row_of(1.0, [0.1]), row_of(-1.0, [0.2])]
    assert all(a is b for a, b in zip(completed(rows, GrpoConfig(), dp), rows, strict=True))


def test_a_token_answers_for_the_penalties_from_it_to_the_end(dp):
    config = GrpoConfig(kl_beta=0.5, kl_place=KlPlace.token_reward)
    row = completed([row_of(2.0, [0.2, 0.4, -0.8]), row_of(0.0, [0.0])], config, dp)[0]
    # 2 - 0.5 x (0.2 + 0.4 - 0.8), 2 - 0.5 x (0.4 - 0.8), 2 + 0.5 x 0.8. The prompt's 9 is no part.
    assert_close(row.advantages_L[1:], torch.tensor([2.1, 2.2, 2.4]))


def test_a_penalty_on_the_whole_response_meets_its_baseline(dp):
    config = GrpoConfig(
        kl_beta=0.5,
        kl_place=KlPlace.rollout_reward,
        advantage_baseline=AdvantageBaseline.leave_one_out,
        advantage_norm=AdvantageNorm.none,
    )
    rows = [row_of(1.0, [0.2, 0.2], 0), row_of(-1.0, [0.8], 0), row_of(0.0, [3.0, 1.0], 5)]
    rows.append(row_of(0.0, [2.0], 5))
    done = completed(rows, config, dp)
    # Rewards less penalties, each against the other: (r - 0.5 x 0.4) - (r' - 0.5 x 0.8), and so on.
    expected = [1 + 0.2, -1 - 0.2, -1.0, 1.0]
    assert [row.advantage for row in done] == pytest.approx(expected, abs=1e-6)


def test_reinforce_pp_has_mean_zero_and_deviation_one_over_all_tokens(dp):
    config = GrpoConfig(
        kl_beta=0.5,
        kl_place=KlPlace.token_reward,
        advantage_baseline=AdvantageBaseline.none,
        advantage_norm=AdvantageNorm.batch,
        advantage_eps=0.0,
    )
    rows = [row_of(1.0, [0.2, 0.4]), row_of(0.0, [0.1]), row_of(1.0, [0.0, 0.6, 0.2])]
    done = completed(rows, config, dp)
    returns_K = torch.tensor([0.7, 0.8, -0.05, 0.6, 0.6, 0.9])
    expected_K = (returns_K - returns_K.mean()) / returns_K.std(correction=0)
    advantages_K = torch.cat([row.advantages_L[row.loss_mask_L] for row in done])
    assert_close(advantages_K, expected_K)


PPO = dict(advantage_baseline=AdvantageBaseline.none, kl_place=KlPlace.token_reward)


def test_a_critic_is_compared_with_the_reward_and_the_penalties_that_came(dp):
    config = PpoConfig(kl_beta=0.5, advantage_norm=AdvantageNorm.none, gae_lambda=0.5, **PPO)
    row = dataclasses.replace(row_of(2.0, [0.2, 0.4]), values_old_L=torch.tensor([9.0, 1.0, 3.0]))
    (row,) = completed([row], config, dp)
    # Rewards -0.1 and 2 - 0.2. Last token: 1.8 - 3 = -1.2. The one before: -0.1 + 3 - 1 + 0.5 x
    # -1.2 = 1.3. The critic should have said the sums. Of the prompt nothing is asked.
    assert_close(row.advantages_L, torch.tensor([0.0, 1.3, -1.2]))
    assert_close(row.returns_L, torch.tensor([0.0, 2.3, 1.8]))


def test_with_lambda_1_the_return_is_the_reward_to_go_whatever_the_critic_said(dp):
    config = PpoConfig(kl_beta=0.0, advantage_norm=AdvantageNorm.batch, **PPO)
    rows = [
        dataclasses.replace(row_of(reward, [0.0] * 3), values_old_L=torch.randn(4))
        for reward in (1.0, 0.0)
    ]
    done = completed(rows, config, dp)
    for row, reward in zip(done, (1.0, 0.0), strict=True):
        assert_close(row.returns_L, torch.tensor([0.0, *[reward] * 3]))
    # Normalised over the phase's tokens.
    tokens_K = torch.cat([row.advantages_L[row.loss_mask_L] for row in done])
    assert float(tokens_K.mean()) == pytest.approx(0, abs=1e-6)
    assert float(tokens_K.std(correction=0)) == pytest.approx(1, abs=1e-4)
