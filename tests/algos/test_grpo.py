"""The GRPO loss by hand, what it leaves out, and its independence of how rows are split."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.grpo import grpo_loss
from megatron_r1.config.algo import GrpoConfig, KlEstimator
from megatron_r1.data.packing import build_micro_batch
from megatron_r1.types import LossOutput, MicroBatch, TrainRow

PLAIN = GrpoConfig(kl_beta=0.0, clip_eps_low=0.2, clip_eps_high=0.2)


def test_clipping_caps_the_gain_but_not_the_loss():
    # ratios 1.5 and 0.5, eps 0.2.  A = +1: min(1.5, 1.2) = 1.2, min(0.5, 0.8) = 0.5; mean 0.85
    assert_close(loss_of([1.5, 0.5], advantage=+1.0).loss, torch.tensor(-0.85))
    # A = -1: min(-1.5, -1.2) = -1.5, min(-0.5, -0.8) = -0.8; mean -1.15
    assert_close(loss_of([1.5, 0.5], advantage=-1.0).loss, torch.tensor(+1.15))


def test_lower_and_upper_bound_are_separate():
    config = GrpoConfig(kl_beta=0.0, clip_eps_low=0.2, clip_eps_high=0.28)
    # A = +1: min(1.5, 1.28); A = -1: min(-0.5, -0.8)
    assert_close(loss_of([1.5], advantage=+1.0, config=config).loss, torch.tensor(-1.28))
    assert_close(loss_of([0.5], advantage=-1.0, config=config).loss, torch.tensor(+0.80))


def test_r1_clips_only_above_eleven():
    config = GrpoConfig(kl_beta=0.0)
    # eps = 10: [-9, 11]. No ratio is below -9.
    assert_close(loss_of([12.0], advantage=+1.0, config=config).loss, torch.tensor(-11.0))
    assert_close(loss_of([12.0], advantage=-1.0, config=config).loss, torch.tensor(+12.0))
    assert_close(loss_of([0.001], advantage=-1.0, config=config).loss, torch.tensor(+0.001))


def test_on_policy_gradient_is_minus_advantage_times_weight():
    micro = micro_of([1.0, 1.0], advantage=0.5)
    logprobs_T = micro.logprobs_old_T.clone().requires_grad_()
    grpo_loss(logprobs_T, micro, config=PLAIN).loss.backward()
    # Two trainable tokens of weight 1/2 after one prompt token.
    assert_close(logprobs_T.grad, torch.tensor([0.0, -0.25, -0.25]))


def test_metrics_are_sums_and_counts_over_trainable_tokens():
    metrics = loss_of([1.5, 0.5, 1.0], advantage=+1.0).metrics
    expected = {
        "algo/clip_frac": (1.0, 3.0),  # 1.5 alone: at 0.5 the minimum is the ratio's own
        "algo/ratio_mean": (3.0, 3.0),
        # ratio - 1 - log(ratio): 0.5 - 0.405465, -0.5 + 0.693147, 0
        "algo/kl_old": (0.094535 + 0.193147, 3.0),
        "algo/dropped_token_frac": (0.0, 3.0),
        "mismatch/logprob_abs_mean": (0.0, 3.0),
        "mismatch/logprob_abs_max": (0.0, 0.0),
        "mismatch/kl": (0.0, 3.0),
        "mismatch/beyond_frac": (0.0, 3.0),
    }
    assert metrics.keys() == expected.keys()
    for name, parts in expected.items():
        assert_close(torch.stack(metrics[name]), torch.tensor(parts), rtol=1e-5, atol=1e-6)


def test_kl_penalty_is_added_to_every_trainable_token():
    # advantage 0, policy = old = 1/2, reference 1/4: k3 = 0.5 - 1 + log 2 = 0.193147
    micro = micro_of([1.0, 1.0], advantage=0.0)
    micro = replace(micro, logprobs_ref_T=micro.logprobs_old_T - torch.tensor(2.0).log())
    output = grpo_loss(micro.logprobs_old_T, micro, config=GrpoConfig(kl_beta=0.1))
    assert_close(output.loss, torch.tensor(0.0193147))
    assert_close(torch.stack(output.metrics["algo/kl_ref"]), torch.tensor([0.386294, 2.0]))
    k2 = GrpoConfig(kl_beta=0.1, kl_estimator=KlEstimator.k2)
    assert_close(grpo_loss(micro.logprobs_old_T, micro, config=k2).loss, torch.tensor(0.0240227))


def test_without_a_penalty_the_reference_is_not_read():
    micro = micro_of([1.0], advantage=1.0)
    micro = replace(micro, logprobs_ref_T=torch.full_like(micro.logprobs_ref_T, torch.nan))
    output = grpo_loss(micro.logprobs_old_T, micro, config=PLAIN)
    assert_close(output.loss, torch.tensor(-1.0))
    assert "algo/kl_ref" not in output.metrics


def test_tokens_without_finite_logprobs_are_dropped_counted_and_carry_no_gradient():
    micro = micro_of([1.0, 1.0, 1.0, 1.0], advantage=1.0)
    rollout_T, old_T = micro.logprobs_rollout_T.clone(), micro.logprobs_old_T.clone()
    rollout_T[1], old_T[2] = -torch.inf, torch.nan
    logprobs_T = micro.logprobs_old_T.clone().requires_grad_()
    micro = replace(micro, logprobs_rollout_T=rollout_T, logprobs_old_T=old_T)
    every_option = GrpoConfig(kl_beta=0.001, rollout_correction_cap=2.0, drop_stale_kl=1.0)
    micro = replace(micro, logprobs_ref_T=logprobs_T.detach())
    output = grpo_loss(logprobs_T, micro, config=every_option)
    output.loss.backward()
    # Four tokens of weight 1/4; two stay, with the weight they had.
    assert_close(output.loss, torch.tensor(-0.5))
    assert_close(logprobs_T.grad, torch.tensor([0.0, 0.0, 0.0, -0.25, -0.25]))
    assert output.metrics["algo/dropped_token_frac"] == (2.0, 4.0)
    assert output.metrics["algo/ratio_mean"] == (2.0, 2.0)


def test_what_lies_outside_the_loss_mask_does_not_matter():
    micro = micro_of([1.5, 0.5], advantage=1.0)
    poisoned = {
        name: getattr(micro, name).masked_fill(~micro.loss_mask_T, torch.nan)
        for name in ("logprobs_old_T", "logprobs_rollout_T", "logprobs_ref_T", "advantages_T")
    }
    logprobs_T = policy_logprobs(micro, [1.5, 0.5]).masked_fill(~micro.loss_mask_T, torch.inf)
    assert_close(
        grpo_loss(logprobs_T, replace(micro, **poisoned), config=PLAIN).loss, torch.tensor(-0.85)
    )


def test_rollout_correction_is_truncated_and_has_no_gradient():
    # The engine drew the two tokens with half and an eighth of the trainer's probability.
    micro = micro_of([1.0, 1.0], advantage=1.0)
    foreign_T = torch.tensor([1.0, 2.0, 8.0]).log()
    micro = replace(micro, logprobs_rollout_T=micro.logprobs_old_T - foreign_T)
    logprobs_T = micro.logprobs_old_T.clone().requires_grad_()
    config = replace(PLAIN, rollout_correction_cap=3.0)
    output = grpo_loss(logprobs_T, micro, config=config)
    output.loss.backward()
    assert_close(output.loss, torch.tensor(-(2.0 + 3.0) / 2))
    assert_close(logprobs_T.grad, torch.tensor([0.0, -1.0, -1.5]))
    assert output.metrics["mismatch/ratio_capped_frac"] == (1.0, 2.0)
    mismatch_sum, mismatch_count = output.metrics["mismatch/logprob_abs_mean"]
    assert_close(mismatch_sum, torch.tensor(2.0).log() + torch.tensor(8.0).log())
    assert mismatch_count == 2.0


def test_only_rollouts_that_are_stale_and_disliked_are_left_out():
    # Each ratio is 1/2, so the mean of log(pi_old / pi) is log 2 = 0.693 nats.
    rows = [row_of(2, advantage) for advantage in (-1.0, +1.0, -1.0)]
    micro = build_micro_batch(rows, pad_to_multiple=4, pad_token=0)
    logprobs_T = micro.logprobs_old_T + torch.tensor([0.5] * 6 + [1.0] * 3 + [0.5] * 3).log()
    logprobs_T.requires_grad_()
    config = GrpoConfig(kl_beta=0.0, drop_stale_kl=0.6)
    output = grpo_loss(logprobs_T, micro, config=config)
    output.loss.backward()
    # Row 0 is stale and disliked; row 1 is liked (-0.5); row 2 is current (+1).
    assert_close(output.loss, torch.tensor(0.5))
    assert (logprobs_T.grad[:3] == 0).all()
    # The padding is not a rollout.
    assert output.metrics["algo/stale_rollout_frac"] == (1.0, 3.0)
    kept = grpo_loss(logprobs_T, micro, config=replace(config, drop_stale_kl=0.7))
    assert_close(kept.loss, torch.tensor(1.0))


def test_an_empty_micro_batch_gives_zero_and_a_backward_pass():
    micro = build_micro_batch([], pad_to_multiple=4, pad_token=0)
    logprobs_T = torch.zeros(4, requires_grad=True)
    output = grpo_loss(logprobs_T, micro, config=EVERYTHING)
    output.loss.backward()
    assert output.loss == 0
    assert (logprobs_T.grad == 0).all()
    assert all(count == 0 for _, count in output.metrics.values())


def test_mismatched_shapes_are_named():
    with pytest.raises(ValueError, match=r"logprobs_T \(2,\), logprobs_old_T \(3,\)"):
        grpo_loss(torch.zeros(2), micro_of([1.0, 1.0], advantage=1.0), config=PLAIN)


EVERYTHING = GrpoConfig(
    clip_eps_low=0.2,
    clip_eps_high=0.28,
    kl_beta=0.1,
    kl_estimator=KlEstimator.k3_corrected,
    rollout_correction_cap=1.5,
    drop_stale_kl=0.05,
)


@pytest.mark.parametrize("config", [GrpoConfig(), EVERYTHING], ids=["r1", "everything"])
@pytest.mark.parametrize(
    "split",
    [[[0], [1], [2], [3], [4], [5]], [[5, 0, 3], [], [2, 4, 1]], [[4, 2], [0], [5, 3, 1], []]],
)
def test_loss_gradient_and_metrics_do_not_depend_on_the_split(config, split):
    generator = torch.Generator().manual_seed(1)
    rows = [random_row(length, generator) for length in (3, 9, 5, 12, 2, 7)]
    policies = [row.logprobs_old_L + 0.3 * _noise(row, generator) for row in rows]
    whole = run_split([list(range(6))], rows, policies, config, pad_to_multiple=1)
    parts = run_split(split, rows, policies, config, pad_to_multiple=8)
    assert_close(parts, whole, rtol=1e-6, atol=1e-6)
    if config is EVERYTHING:  # every option does something to these rows
        for name in ("algo/clip_frac", "mismatch/ratio_capped_frac", "algo/stale_rollout_frac"):
            numerator, denominator = whole[2][name]
            assert 0 < numerator < denominator
        assert whole[2]["algo/dropped_token_frac"][0] == 1


def run_split(split, rows, policies, config, *, pad_to_multiple):
    """Loss, gradient of each row and metrics, summed over the micro-batches."""
    leaves = [policy_L.clone().requires_grad_() for policy_L in policies]
    loss, metrics = torch.zeros(()), {}
    for bin_ in split:
        micro = build_micro_batch(
            [rows[i] for i in bin_], pad_to_multiple=pad_to_multiple, pad_token=0
        )
        logprobs_T = torch.cat([leaves[i] for i in bin_] + [torch.zeros(micro.num_padding)])
        output = grpo_loss(logprobs_T, micro, config=config)
        if output.loss.requires_grad:
            output.loss.backward()
        loss += output.loss.detach()
        for name, parts in output.metrics.items():
            add = torch.maximum if name.endswith("_max") else torch.add
            metrics[name] = add(metrics.get(name, torch.zeros(2)), torch.stack(parts))
    return loss, [leaf.grad for leaf in leaves], metrics


def random_row(length: int, generator: torch.Generator) -> TrainRow:
    """One prompt token, then a response; the row of 9 has a token the engine calls impossible."""
    blank = TrainRow(
        tokens_L=torch.randint(100, (length,), generator=generator),
        loss_mask_L=torch.arange(length) > 0,
    )
    old_L = -1.0 + 0.5 * _noise(blank, generator)
    rollout_L = old_L + 0.4 * _noise(blank, generator)
    if length == 9:
        rollout_L[4] = -torch.inf
    return replace(
        blank,
        advantage=float(torch.randn((), generator=generator)),
        weight=1 / (6 * (length - 1)),
        logprobs_old_L=old_L,
        logprobs_rollout_L=rollout_L,
        logprobs_ref_L=old_L + 0.2 * _noise(blank, generator),
    )


def _noise(row: TrainRow, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(row.num_tokens, generator=generator)


def row_of(num_response_tokens: int, advantage: float) -> TrainRow:
    """One prompt token and a response of weight 1 in all; every log-probability is log 1/2."""
    half_L = torch.full((1 + num_response_tokens,), 0.5).log()
    return TrainRow(
        tokens_L=torch.zeros(1 + num_response_tokens, dtype=torch.int64),
        loss_mask_L=torch.arange(1 + num_response_tokens) > 0,
        advantage=advantage,
        weight=1 / num_response_tokens,
        logprobs_rollout_L=half_L,
        logprobs_old_L=half_L,
        logprobs_ref_L=half_L,
    )


def micro_of(ratios: list[float], *, advantage: float) -> MicroBatch:
    return build_micro_batch([row_of(len(ratios), advantage)], pad_to_multiple=1, pad_token=0)


def policy_logprobs(micro: MicroBatch, ratios: list[float]) -> torch.Tensor:
    return micro.logprobs_old_T + torch.tensor([1.0, *ratios]).log()


def loss_of(ratios: list[float], *, advantage: float, config: GrpoConfig = PLAIN) -> LossOutput:
    micro = micro_of(ratios, advantage=advantage)
    return grpo_loss(policy_logprobs(micro, ratios), micro, config=config)
