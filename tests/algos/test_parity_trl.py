"""Values and gradients against TRL 1.16 on the same random inputs, in float64.

TRL's losses are methods of its trainers; each is called with an object that has just the settings
it reads, and with log-probabilities, or logits, in the place of a model's.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.cispo import cispo_loss
from megatron_r1.algos.distill import teacher_divergence
from megatron_r1.algos.dpo import dpo_loss
from megatron_r1.algos.grpo import grpo_loss
from megatron_r1.algos.overlong import overlong_penalty
from megatron_r1.algos.reward_losses import bradley_terry_loss
from megatron_r1.config.algo import CispoConfig, GrpoConfig, KlEstimator, LossReduction, Ratio
from tests.algos.peers import CLOSE, LENGTHS, MAX_LENGTH, peer, sample

GRPOTrainer = peer("trl.trainer.grpo_trainer", "1.16").GRPOTrainer

LOSS_TYPE = {
    LossReduction.rollout_mean: "grpo",
    LossReduction.token_mean: "dapo",
    LossReduction.constant: "dr_grpo",
}


class Alone:
    """One process, as accelerate would describe it."""

    num_processes = 1
    sync_gradients = True
    device = torch.device("cpu")

    def gather(self, value):
        return value

    gather_for_metrics = gather

    def reduce(self, value, reduction):
        return value


def trainer(given, **settings):
    """What the trainers' losses read of themselves."""
    defaults = dict(
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (
            given.logprobs_NL,
            torch.zeros_like(given.mask_NL),
            None,
        ),
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(use_bias_correction_kl=False, delta=None, steps_per_generation=1),
        accelerator=Alone(),
        _metrics={"train": defaultdict(list)},
        aux_loss_enabled=False,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        importance_sampling_level="token",
        beta=0.0,
        use_vllm=False,
        current_gradient_accumulation_steps=1,
        max_completion_length=MAX_LENGTH,
        _entropy_bonus_enabled=False,
        epsilon_low=0.2,
        epsilon_high=0.2,
    )
    return SimpleNamespace(**{**defaults, **settings})


def inputs(given):
    empty = torch.zeros(len(LENGTHS), 0)
    return dict(
        prompt_ids=empty,
        prompt_mask=empty,
        completion_ids=torch.zeros_like(given.mask_NL),
        completion_mask=given.mask_NL,
        advantages=given.advantages_N,
        old_per_token_logps=given.old_NL,
        ref_per_token_logps=given.ref_NL,
        old_logps=(given.old_NL * given.mask_NL).sum(1),
        num_items_in_batch=given.mask_NL.sum(),
    )


def grpo_of_trl(given, **settings):
    stand_in = trainer(given, **settings)
    stand_in.get_off_policy_mask = GRPOTrainer.get_off_policy_mask
    return GRPOTrainer._compute_loss(stand_in, None, inputs(given))


def check(given, ours, theirs) -> None:
    assert_close(ours.loss, theirs, **CLOSE)
    assert_close(given.gradient(ours), given.gradient(theirs), **CLOSE)


# TRL corrects the KL of sequence ratios by the sequence's ratio, we by the token's.
@pytest.mark.parametrize(
    ("level", "estimator"),
    [
        ("token", KlEstimator.k3),
        ("token", KlEstimator.k3_corrected),
        ("sequence", KlEstimator.k3),
    ],
)
@pytest.mark.parametrize("reduction", LossReduction)
def test_grpo_with_its_options(reduction, estimator, level):
    given = sample(drift=0.4 if level == "token" else 0.2)
    corrected = estimator is KlEstimator.k3_corrected
    config = GrpoConfig(
        ratio=Ratio.token if level == "token" else Ratio.sequence_mean,
        clip_eps_low=0.05,
        clip_eps_high=0.1,
        kl_beta=0.05,
        kl_estimator=estimator,
    )
    ours = grpo_loss(*given.packed(reduction), config=config)
    assert 0 < ours.metrics["algo/clip_frac"][0] < sum(LENGTHS)
    theirs = grpo_of_trl(
        given,
        loss_type=LOSS_TYPE[reduction],
        importance_sampling_level=level,
        epsilon_low=0.05,
        epsilon_high=0.1,
        beta=0.05,
        args=SimpleNamespace(use_bias_correction_kl=corrected, delta=None, steps_per_generation=1),
    )
    check(given, ours, theirs)


def test_off_policy_sequence_masking():
    given = sample()
    config = GrpoConfig(kl_beta=0.0, drop_stale_kl=0.02)
    ours = grpo_loss(*given.packed(LossReduction.rollout_mean), config=config)
    assert 0 < ours.metrics["algo/stale_rollout_frac"][0] < len(LENGTHS)
    theirs = grpo_of_trl(
        given,
        loss_type="grpo",
        off_policy_mask_threshold=0.02,
        epsilon_low=10.0,
        epsilon_high=10.0,
    )
    check(given, ours, theirs)


def test_cispo():
    given = sample()
    config = CispoConfig(clip_eps_high=0.3, kl_beta=0.0)
    ours = cispo_loss(*given.packed(LossReduction.token_mean), config=config)
    assert 0 < ours.metrics["algo/clip_frac"][0] < sum(LENGTHS)
    # TRL's epsilon_high is the bound itself.
    check(given, ours, grpo_of_trl(given, loss_type="cispo", epsilon_high=1.3))


def test_rloo():
    rloo = peer("trl.trainer.rloo_trainer", "1.16").RLOOTrainer
    given = sample(drift=0.1)
    config = GrpoConfig(ratio=Ratio.sequence, clip_eps_low=0.2, clip_eps_high=0.2, kl_beta=0.0)
    ours = grpo_loss(*given.packed(LossReduction.rollout_mean), config=config)
    assert 0 < ours.metrics["algo/clip_frac"][0] < sum(LENGTHS)
    check(given, ours, rloo._compute_loss(trainer(given), None, inputs(given)))


def test_soft_overlong_punishment():
    theirs = peer("trl.rewards", "1.16").get_soft_overlong_punishment(
        max_completion_len=20, soft_punish_cache=5
    )
    lengths = range(1, 21)
    expected = theirs(completion_ids=[[0] * length for length in lengths])
    ours = [overlong_penalty(n, max_response_tokens=20, cache_tokens=5) for n in lengths]
    assert ours == pytest.approx(expected, abs=1e-12)
    assert ours[14:] == pytest.approx([0.0, -0.2, -0.4, -0.6, -0.8, -1.0])


def test_bradley_terry():
    reward_trainer = peer("trl.trainer.reward_trainer", "1.16").RewardTrainer
    scores_N1 = sample().old_NL[:, :1].clone().requires_grad_()
    stand_in = SimpleNamespace(
        model=SimpleNamespace(training=True),
        args=SimpleNamespace(center_rewards_coefficient=0.1),
        accelerator=Alone(),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        aux_loss_enabled=False,
    )
    theirs = reward_trainer.compute_loss(
        stand_in,
        lambda **kwargs: SimpleNamespace(logits=scores_N1),
        {"attention_mask": torch.ones(1)},
    )
    chosen_N, rejected_N = scores_N1.squeeze(1).chunk(2)
    ours = bradley_terry_loss(chosen_N, rejected_N, num_pairs=len(chosen_N), centre_weight=0.1)
    assert_close(ours, theirs, **CLOSE)
    gradients = [torch.autograd.grad(loss, scores_N1)[0] for loss in (ours, theirs)]
    assert_close(*gradients, **CLOSE)


def test_dpo():
    dpo_trainer = peer("trl.trainer.dpo_trainer", "1.16").DPOTrainer
    given = sample()
    logps_N = (given.logprobs_NL * given.mask_NL).sum(1)
    ref_N = (given.ref_NL * given.mask_NL).sum(1)

    def outputs(logprobs_NL):
        zeros_NL = torch.zeros_like(logprobs_NL)
        return SimpleNamespace(
            log_probs=logprobs_NL * given.mask_NL,
            entropy=zeros_NL,
            mean_logits=zeros_NL,
            is_top1=zeros_NL > 0,
        )

    # TRL drops the first column of its masks: nothing predicts that token.
    mask = torch.cat([torch.zeros(len(LENGTHS), 1), given.mask_NL], dim=1).long()
    stand_in = SimpleNamespace(
        model=SimpleNamespace(training=True),
        ref_model=lambda **kwargs: outputs(given.ref_NL),
        accelerator=Alone(),
        args=SimpleNamespace(gradient_checkpointing_kwargs=None, gradient_checkpointing=False),
        _metrics={"train": defaultdict(list)},
        _total_train_tokens=0,
        _tp_size=1,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        loss_types=["sigmoid"],
        loss_weights=[1.0],
        beta=0.1,
        label_smoothing=0.0,
        use_weighting=False,
        _prepare_inputs=lambda given: given,
    )
    chosen_ref_N, rejected_ref_N = ref_N.chunk(2)
    theirs = dpo_trainer._compute_loss(
        stand_in,
        lambda **kwargs: outputs(given.logprobs_NL),
        {
            "input_ids": torch.zeros_like(mask),
            "attention_mask": torch.ones_like(mask),
            "completion_mask": mask,
            "ref_chosen_logps": chosen_ref_N,
            "ref_rejected_logps": rejected_ref_N,
        },
        False,
    )
    chosen_N, rejected_N = logps_N.chunk(2)
    ours = dpo_loss(
        chosen_N, rejected_N, chosen_ref_N, rejected_ref_N, beta=0.1, num_pairs=len(chosen_N)
    )
    assert_close(ours, theirs, **CLOSE)
    assert_close(given.gradient(ours), given.gradient(theirs), **CLOSE)


@pytest.mark.parametrize("interpolation", [0.0, 0.3, 1.0])
def test_distillation_on_logits(interpolation):
    gkd = peer("trl.experimental.gkd.gkd_trainer", "1.16").GKDTrainer
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 1, 7, 11, generator=generator, dtype=torch.float64)
    student, teacher = logits[0].requires_grad_(), logits[1].detach()
    theirs = gkd.generalized_jsd_loss(
        student,
        teacher,
        labels=torch.zeros(1, 7),
        beta=interpolation,
        temperature=2.0,
    )
    ours = teacher_divergence(
        student[0], teacher[0], interpolation=interpolation, temperature=2.0
    ).mean()
    assert_close(ours, theirs, **CLOSE)
    gradients = [torch.autograd.grad(loss, student)[0] for loss in (ours, theirs)]
    assert_close(*gradients, **CLOSE)
