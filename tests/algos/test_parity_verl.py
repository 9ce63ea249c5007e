"""Values and gradients against verl 0.9.1 on the same random inputs, in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.advantages import group_advantages, reward_to_go, whiten
from megatron_r1.algos.cispo import cispo_loss
from megatron_r1.algos.gae import gae
from megatron_r1.algos.grpo import grpo_loss
from megatron_r1.algos.kl import kl_k1, kl_k2, kl_k3
from megatron_r1.algos.value import value_loss
from megatron_r1.config.algo import (
    AdvantageBaseline,
    AdvantageNorm,
    CispoConfig,
    GrpoConfig,
    LossReduction,
    Ratio,
)
from tests.algos.peers import CLOSE, GROUP_SIZE, LENGTHS, MAX_LENGTH, peer, sample

core = peer("verl.trainer.ppo.core_algos", "0.9.1")
ActorConfig = peer("verl.workers.config", "0.9.1").ActorConfig
AlgoConfig = peer("verl.trainer.config", "0.9.1").AlgoConfig

AGGREGATION = {
    LossReduction.rollout_mean: "seq-mean-token-mean",
    LossReduction.token_mean: "token-mean",
    LossReduction.constant: "seq-mean-token-sum-norm",
}
GROUPS = np.repeat(np.arange(len(LENGTHS) // GROUP_SIZE), GROUP_SIZE)


def actor_config(low: float, high: float):
    """verl's; its dual clip, which has no switch, is put out of reach."""
    return ActorConfig(
        strategy="fsdp",
        clip_ratio=low,
        clip_ratio_low=low,
        clip_ratio_high=high,
        clip_ratio_c=1e9,
        ppo_micro_batch_size_per_gpu=1,
        rollout_n=GROUP_SIZE,
    )


def check(given, ours, theirs) -> None:
    assert_close(ours.loss, theirs, **CLOSE)
    assert_close(given.gradient(ours), given.gradient(theirs), **CLOSE)


def verl_loss(name: str, given, reduction: LossReduction, low: float, high: float):
    loss, _ = core.get_policy_loss_fn(name)(
        old_log_prob=given.old_NL,
        log_prob=given.logprobs_NL,
        advantages=given.advantages_N[:, None].expand_as(given.mask_NL),
        response_mask=given.mask_NL,
        loss_agg_mode=AGGREGATION[reduction],
        config=actor_config(low, high),
    )
    return loss


@pytest.mark.parametrize("reduction", LossReduction)
@pytest.mark.parametrize(("low", "high"), [(0.2, 0.2), (0.2, 0.28), (10.0, 10.0)])
def test_grpo_dapo_and_dr_grpo(reduction, low, high):
    given = sample()
    config = GrpoConfig(clip_eps_low=low, clip_eps_high=high, kl_beta=0.0, loss_reduction=reduction)
    ours = grpo_loss(*given.packed(reduction), config=config)
    clipped = ours.metrics["algo/clip_frac"][0]
    assert (clipped > 0) == (low < 1)  # the clip has something to do
    check(given, ours, verl_loss("vanilla", given, reduction, low, high))


@pytest.mark.parametrize("reduction", LossReduction)
def test_gspo(reduction):
    given = sample(drift=0.02)
    config = GrpoConfig(
        ratio=Ratio.sequence_mean, clip_eps_low=3e-3, clip_eps_high=4e-3, kl_beta=0.0
    )
    ours = grpo_loss(*given.packed(reduction), config=config)
    assert 0 < ours.metrics["algo/clip_frac"][0] < sum(LENGTHS)
    check(given, ours, verl_loss("gspo", given, reduction, 3e-3, 4e-3))


@pytest.mark.parametrize("reduction", LossReduction)
def test_cispo(reduction):
    given = sample()
    config = CispoConfig(clip_eps_low=0.3, clip_eps_high=0.4, kl_beta=0.0)
    ours = cispo_loss(*given.packed(reduction), config=config)
    assert 0 < ours.metrics["algo/clip_frac"][0] < sum(LENGTHS)
    check(given, ours, verl_loss("cispo", given, reduction, 0.3, 0.4))


@pytest.mark.parametrize("name", ["k1", "k2", "k3"])
def test_kl_estimators(name):
    given = sample()
    ours = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}[name](given.logprobs_NL, given.ref_NL)
    theirs = core.kl_penalty_forward(given.logprobs_NL, given.ref_NL, name)
    assert_close(ours, theirs, **CLOSE)
    assert_close(given.gradient(ours.sum()), given.gradient(theirs.sum()), **CLOSE)


def at_last_token(given):
    """Rewards of whole responses as verl has them: at the last token."""
    rewards_NL = torch.zeros_like(given.mask_NL)
    rewards_NL[range(len(LENGTHS)), [length - 1 for length in LENGTHS]] = given.rewards_N
    return rewards_NL


def ours_of(given, **settings):
    rewards_PG = given.rewards_N.view(-1, GROUP_SIZE)
    config = GrpoConfig(advantage_eps=1e-6, **settings)
    advantages_N1 = group_advantages(rewards_PG, config=config).view(-1, 1)
    return advantages_N1 * given.mask_NL


@pytest.mark.parametrize("by_std", [True, False])
def test_advantages_of_grpo_and_dr_grpo(by_std):
    given = sample()
    theirs, _ = core.compute_grpo_outcome_advantage(
        at_last_token(given), given.mask_NL, GROUPS, norm_adv_by_std_in_grpo=by_std
    )
    norm = AdvantageNorm.sample_std if by_std else AdvantageNorm.none
    assert_close(ours_of(given, advantage_norm=norm), theirs, **CLOSE)


def test_advantages_of_rloo():
    given = sample()
    theirs, _ = core.compute_rloo_outcome_advantage(at_last_token(given), given.mask_NL, GROUPS)
    ours = ours_of(
        given,
        advantage_baseline=AdvantageBaseline.leave_one_out,
        advantage_norm=AdvantageNorm.none,
    )
    assert_close(ours, theirs, **CLOSE)


def test_advantages_of_reinforce_pp():
    given = sample()
    rewards_NL = at_last_token(given) - 0.05 * given.ref_NL * given.mask_NL
    theirs_NL, _ = core.compute_reinforce_plus_plus_outcome_advantage(
        rewards_NL, given.mask_NL, config=AlgoConfig(gamma=1.0)
    )
    returns_NL = torch.stack([reward_to_go(rewards_L) for rewards_L in rewards_NL])
    mask_NL = given.mask_NL > 0
    tokens_K = returns_NL[mask_NL]
    # The standard deviation is the sample's there, as everywhere in the peers.
    ours_K = whiten(tokens_K, mean=float(tokens_K.mean()), std=float(tokens_K.std()), eps=0)
    assert_close(ours_K, theirs_NL[mask_NL], **CLOSE)


def test_advantages_of_a_critic():
    given = sample()
    values_NL, rewards_NL = given.ref_NL * given.mask_NL, at_last_token(given)
    _, theirs_NL = core.compute_gae_advantage_return(
        rewards_NL, values_NL, given.mask_NL, gamma=0.97, lam=0.9
    )
    for n, length in enumerate(LENGTHS):
        advantages_L, returns_L = gae(
            rewards_NL[n, :length], values_NL[n, :length], discount=0.97, lam=0.9
        )
        assert_close(returns_L, theirs_NL[n, :length], **CLOSE)
        assert_close(advantages_L, theirs_NL[n, :length] - values_NL[n, :length], **CLOSE)


def test_a_critic_that_trusts_rewards_alone_sees_the_reward_to_go():
    given = sample()
    rewards_L = given.ref_NL[3]
    advantages_L, returns_L = gae(rewards_L, torch.zeros(MAX_LENGTH).double(), discount=1, lam=1)
    assert_close(advantages_L, reward_to_go(rewards_L))
    assert_close(returns_L, reward_to_go(rewards_L))


def test_the_loss_of_a_critic():
    given = sample()
    values_NL, returns_NL = given.logprobs_NL, given.ref_NL
    theirs, clip_frac = core.compute_value_loss(
        values_NL, returns_NL, given.old_NL, given.mask_NL, cliprange_value=0.2
    )
    assert 0 < clip_frac < 1
    mask_NL = given.mask_NL > 0
    weights_K = torch.full((sum(LENGTHS),), 1 / sum(LENGTHS), dtype=torch.float64)
    ours = value_loss(
        values_NL[mask_NL], given.old_NL[mask_NL], returns_NL[mask_NL], weights_K, clip=0.2
    )
    assert_close(ours, theirs, **CLOSE)
    assert_close(given.gradient(ours), given.gradient(theirs), **CLOSE)
