"""What the parity tests do not reach: the objectives that neither TRL nor verl has, by float64
references, and that the splits of a step do not change any of them."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.advantages import group_advantages
from megatron_r1.algos.cispo import cispo_loss
from megatron_r1.algos.dpo import dpo_loss, dpo_pair_loss
from megatron_r1.algos.grpo import grpo_loss
from megatron_r1.algos.kl_penalty import adapt_coefficient, kl_penalised_loss
from megatron_r1.algos.reward_losses import bradley_terry_loss, pointwise_loss
from megatron_r1.algos.value import critic_loss
from megatron_r1.config.algo import (
    AdvantageBaseline,
    AdvantageNorm,
    AlgoConfig,
    CispoConfig,
    DpoConfig,
    GrpoConfig,
    KlPenaltyConfig,
    LossReduction,
    Ratio,
)
from megatron_r1.config.load import CONF_DIR, load_config
from megatron_r1.data.packing import build_micro_batch
from megatron_r1.types import TrainRow
from tests.algos.peers import CLOSE, sample
from tests.algos.test_grpo import random_row


@pytest.mark.parametrize("reduction", LossReduction)
def test_the_kl_penalised_surrogate(reduction):
    given = sample()
    config = KlPenaltyConfig(kl_beta=0.0, loss_reduction=reduction)
    logprobs_T, micro = given.packed(reduction)
    ours = kl_penalised_loss(logprobs_T, micro, config=config, coefficient=3.0)
    log_ratio_T = logprobs_T - micro.logprobs_old_T
    ratio_T = log_ratio_T.exp()
    # PPO Eq. 8, with KL(old || pi) from a token of old: ratio - 1 - log ratio.
    objective_T = ratio_T * micro.advantages_T - 3.0 * (ratio_T - 1 - log_ratio_T)
    theirs = -(micro.weights_T * objective_T).sum()
    assert_close(ours.loss, theirs, **CLOSE)
    assert_close(given.gradient(ours), given.gradient(theirs), **CLOSE)


def test_its_penalty_is_the_kl_over_the_vocabulary_on_average():
    generator = torch.Generator().manual_seed(0)
    logits_V = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    old_V, new_V = torch.log_softmax(logits_V, dim=-1)
    new_V.requires_grad_()
    exact = (old_V.exp() * (old_V - torch.log_softmax(new_V, -1))).sum()
    policy_V = torch.log_softmax(new_V, -1)
    log_ratio_V = policy_V - old_V
    estimate = (old_V.exp() * (log_ratio_V.exp() - 1 - log_ratio_V)).sum()
    assert_close(estimate, exact, **CLOSE)
    gradients = [torch.autograd.grad(value, new_V)[0] for value in (estimate, exact)]
    assert_close(*gradients, **CLOSE)


def test_the_coefficient_is_halved_or_doubled_outside_a_factor_of_one_and_a_half():
    adapt = partial(adapt_coefficient, 4.0, target_kl=0.03)
    assert adapt(kl=0.019) == 2.0  # below 0.03 / 1.5 = 0.02
    assert adapt(kl=0.021) == adapt(kl=0.044) == 4.0
    assert adapt(kl=0.046) == 8.0  # above 0.03 x 1.5 = 0.045


def test_r1_eq_1_as_printed():
    given = sample(drift=0.2)
    config = GrpoConfig(ratio=Ratio.sequence, clip_eps_low=0.3, clip_eps_high=0.3, kl_beta=0.0)
    ours = grpo_loss(*given.packed(LossReduction.rollout_mean), config=config)
    log_ratio_N = ((given.logprobs_NL - given.old_NL) * given.mask_NL).sum(1)
    ratio_N = log_ratio_N.exp()
    clipped_N = ratio_N.clamp(0.7, 1.3)
    theirs = -torch.minimum(ratio_N * given.advantages_N, clipped_N * given.advantages_N).mean()
    assert (ratio_N != clipped_N).any()
    assert_close(ours.loss, theirs, **CLOSE)
    assert_close(given.gradient(ours), given.gradient(theirs), **CLOSE)


def test_leave_one_out_compares_each_with_the_mean_of_the_others():
    config = GrpoConfig(
        advantage_baseline=AdvantageBaseline.leave_one_out, advantage_norm=AdvantageNorm.none
    )
    advantages_PG = group_advantages(torch.tensor([[3.0, 0.0, 0.0]]), config=config)
    assert_close(advantages_PG, torch.tensor([[3.0, -1.5, -1.5]]))


def test_without_a_baseline_the_reward_is_the_advantage():
    config = GrpoConfig(
        advantage_baseline=AdvantageBaseline.none, advantage_norm=AdvantageNorm.batch
    )
    rewards_PG = torch.tensor([[3.0, 0.0], [1.0, 1.0]])
    assert_close(group_advantages(rewards_PG, config=config), rewards_PG)


def test_the_pointwise_loss_is_a_cross_entropy():
    scores_N = torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64, requires_grad=True)
    labels_N = torch.tensor([1, 0, 1])
    ours = pointwise_loss(scores_N, labels_N, num_examples=6)
    p_N = [1 / (1 + math.exp(-score)) for score in (2.0, -1.0, 0.5)]
    theirs = -(math.log(p_N[0]) + math.log(1 - p_N[1]) + math.log(p_N[2])) / 6
    assert ours.item() == pytest.approx(theirs, abs=1e-12)
    (gradient_N,) = torch.autograd.grad(ours, scores_N)
    expected = [(p - label) / 6 for p, label in zip(p_N, (1, 0, 1), strict=True)]
    assert gradient_N.tolist() == pytest.approx(expected, abs=1e-12)


def test_shares_of_pairs_add_up():
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(4, 6, generator=generator, dtype=torch.float64)
    for loss in (
        lambda c: dpo_loss(*c, beta=0.3, num_pairs=6, label_smoothing=0.1),
        lambda c: bradley_terry_loss(c[0], c[1], num_pairs=6, centre_weight=0.2),
    ):
        assert_close(loss(columns[:, :2]) + loss(columns[:, 2:]), loss(columns), **CLOSE)


def test_a_dpo_label_that_may_be_wrong_costs_on_both_sides():
    # A margin of ln 3: sigmoid 3/4. 0.9 x -log(3/4) + 0.1 x -log(1/4)
    zero = torch.zeros(1)
    loss = dpo_loss(
        torch.tensor([3.0]).log(), zero, zero, zero, beta=1.0, num_pairs=1, label_smoothing=0.1
    )
    assert loss.item() == pytest.approx(-0.9 * math.log(0.75) - 0.1 * math.log(0.25), abs=1e-6)


def rows_of(*lengths: int) -> list[TrainRow]:
    """Rows of these lengths behind one token of prompt, with a reference and a critic."""
    generator = torch.Generator().manual_seed(2)
    rows = []
    for length in lengths:
        noise = torch.randn(3, 1 + length, generator=generator)
        rows.append(
            TrainRow(
                tokens_L=torch.zeros(1 + length, dtype=torch.int64),
                loss_mask_L=torch.arange(1 + length) > 0,
                weight=0.1,
                logprobs_ref_L=noise[0] - 1,
                values_old_L=noise[1],
                returns_L=noise[2],
            )
        )
    return rows


def test_dpo_takes_whole_responses_and_leaves_padding_out():
    micro = build_micro_batch(rows_of(3, 5, 1, 2), pad_to_multiple=8, pad_token=0)
    assert micro.num_padding == 1 and len(micro.tokens_T) == 16
    logprobs_T = -torch.rand(16, generator=torch.Generator().manual_seed(3)).requires_grad_()
    ours = dpo_pair_loss(logprobs_T, micro, config=DpoConfig(beta=0.5), num_pairs=2)
    # Prompts stand at 0, 4, 10 and 12.
    spans = [slice(1, 4), slice(5, 10), slice(11, 12), slice(13, 15)]
    sums = [
        [values_T[span].sum() for span in spans] for values_T in (logprobs_T, micro.logprobs_ref_T)
    ]
    gains = [policy - reference for policy, reference in zip(*sums, strict=True)]
    margins = torch.stack([gains[0] - gains[1], gains[2] - gains[3]])
    theirs = -torch.log(torch.sigmoid(0.5 * margins)).mean()
    assert_close(ours.loss, theirs, **CLOSE)
    gradients = [torch.autograd.grad(loss, logprobs_T)[0] for loss in (ours.loss, theirs)]
    assert_close(*gradients, **CLOSE)
    right, pairs = ours.metrics["preference/accuracy"]
    assert (right, pairs) == (int((margins > 0).sum()), 2)


def test_what_a_critic_says_after_a_token_is_about_the_next_one():
    row = dataclasses.replace(
        rows_of(2)[0], values_old_L=torch.zeros(3), returns_L=torch.tensor([0.0, 1.0, 3.0])
    )
    micro = build_micro_batch([row], pad_to_multiple=1, pad_token=0)
    values_T = torch.tensor([0.5, 1.0, 9.0], requires_grad=True)
    output = critic_loss(values_T, micro, clip=0.75)
    # Returns 1 and 3; values 0.5 and 1, of which the clip leaves 0.5 and 0.75. Half of the weight
    # 0.1 times 0.5^2 + 2.25^2; the clipped value has no gradient, and the last nothing to say.
    assert output.loss.item() == pytest.approx(0.05 * (0.25 + 5.0625))
    (gradient_T,) = torch.autograd.grad(output.loss, values_T)
    assert_close(gradient_T, torch.tensor([-0.05, 0.0, 0.0]))
    assert output.metrics["critic/clip_frac"] == (1, 2)
    assert output.metrics["critic/value_mean"] == (1.5, 2)
    assert output.metrics["critic/squared_error"] == (0.25 + 4, 2)
    assert critic_loss(values_T, micro, clip=0.4).metrics["critic/clip_frac"] == (2, 2)


LOSSES = {
    "sequence": partial(
        grpo_loss, config=GrpoConfig(ratio=Ratio.sequence, clip_eps_low=0.2, clip_eps_high=0.2)
    ),
    "gspo": partial(
        grpo_loss,
        config=GrpoConfig(ratio=Ratio.sequence_mean, clip_eps_low=0.01, clip_eps_high=0.01),
    ),
    "cispo": partial(cispo_loss, config=CispoConfig(clip_eps_high=0.1)),
    "kl_penalty": partial(kl_penalised_loss, config=KlPenaltyConfig(), coefficient=2.0),
}


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("split", [[[0], [1], [2], [3]], [[3, 0], [], [2, 1]]])
def test_loss_and_gradient_do_not_depend_on_the_split(name, split):
    generator = torch.Generator().manual_seed(1)
    rows = [random_row(length, generator) for length in (3, 9, 5, 12)]
    policies = [
        row.logprobs_old_L + 0.1 * torch.randn(row.num_tokens, generator=generator) for row in rows
    ]

    def run(bins, pad_to_multiple):
        leaves = [policy_L.clone().requires_grad_() for policy_L in policies]
        total = torch.zeros(())
        for members in bins:
            micro = build_micro_batch(
                [rows[i] for i in members], pad_to_multiple=pad_to_multiple, pad_token=0
            )
            padding = torch.zeros(micro.num_padding, requires_grad=True)
            loss = LOSSES[name](torch.cat([*(leaves[i] for i in members), padding]), micro).loss
            loss.backward()
            total += loss.detach()
        return total, [leaf.grad for leaf in leaves]

    assert_close(run(split, 8), run([[0, 1, 2, 3]], 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("choice", sorted(path.stem for path in (CONF_DIR / "algo").glob("*.yaml")))
def test_every_choice_loads_and_bears_its_file_name(choice):
    config = load_config([f"algo={choice}", "rollout.max_response_tokens=64", "model.init_from=x"])
    assert config.algo.name == choice
    if isinstance(config.algo, AlgoConfig):
        config.validate(world_size=1)
