"""PPO's critic by itself: whose values it gives out, how it learns, what a checkpoint keeps."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.algo import PpoConfig
from megatron_r1.config.load import load_config
from megatron_r1.config.model import Head
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.trainers.critic import Critic
from megatron_r1.trainers.forward_passes import row_values
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.minibatches import Minibatch
from megatron_r1.types import TrainBatch, TrainRow

pytestmark = pytest.mark.megatron

LR = 1e-2
CONFIG = PpoConfig(
    critic_optimizer=OptimizerConfig(lr=LR, warmup_steps=2), critic_warmup_steps=1, value_clip=0.2
)
FAR = TrainRow(
    tokens_L=torch.arange(3, 9),
    loss_mask_L=torch.arange(6) >= 2,
    weight=1 / 4,
    values_old_L=torch.full((6,), 5.0),
    returns_L=torch.zeros(6),
)
"""Of a critic that has fallen from 5 to about 0, which is what came."""
NEAR = dataclasses.replace(FAR, values_old_L=torch.zeros(6), returns_L=torch.ones(6))
"""Of a new one, where 1 came."""


def critic_of(one_rank, *, seed: int = 7) -> Critic:
    policy = one_rank.policy(load_config(["model=tiny_dense"]), seed=seed, head=Head.scalar)
    return Critic(megatron_step=MegatronStep(policy, CONFIG.critic_optimizer), config=CONFIG)


def minibatch(row: TrainRow) -> Minibatch:
    return Minibatch(TrainBatch((row,)), num_rollouts=1)


def update(critic: Critic, row: TrainRow, step: int) -> dict[str, float]:
    return critic.update(minibatch(row), step=step, num_steps=9, on_micro_batch=None)


def weights(critic: Critic) -> dict[str, torch.Tensor]:
    parameters = critic.megatron_step.policy.named_parameters()
    return {name: tensor.detach().clone() for name, tensor in parameters}


def test_a_token_has_the_value_of_what_stood_before_it(one_rank):
    critic = critic_of(one_rank)
    (said_L,) = row_values(critic.megatron_step.policy, minibatch(FAR).batch)
    (row,) = critic.add_values(minibatch(FAR), None).batch.rows
    assert torch.equal(row.values_old_L[1:], said_L[:-1]) and row.values_old_L[0] == 0


def test_an_update_is_clipped_and_its_learning_rate_is_the_critics(one_rank):
    critic = critic_of(one_rank)
    assert critic.warms_up(0) and not critic.warms_up(1)
    before = weights(critic)
    update(critic, NEAR, step=0)
    # Adam's first step is the learning rate's, here of the first of two warm-up updates.
    largest = max(float((new - before[name]).abs().max()) for name, new in weights(critic).items())
    assert largest == pytest.approx(LR / 2, rel=0.1)
    metrics = update(critic_of(one_rank), FAR, step=0)
    # The clip leaves 4.8 of a value near 0 that was 5: half the square of 4.8.
    assert metrics["critic/loss"] == pytest.approx(0.5 * 4.8**2, rel=0.02)
    assert metrics["critic/clip_frac"] == 1.0 and metrics["critic/skipped"] == 0.0


def test_a_checkpoint_keeps_weights_and_moments(one_rank, tmp_path):
    policy = one_rank.policy(load_config(["model=tiny_dense"]))
    step = MegatronStep(policy, OptimizerConfig())
    critic, other = critic_of(one_rank), critic_of(one_rank, seed=99)
    update(critic, NEAR, step=3)
    store = CheckpointStore(tmp_path, keep=1, tokenizer_dir=None)
    path = store.save(LoopState(step=1), policy, step.optimizer, critic=critic.megatron_step)
    store.load(path, policy, step.optimizer, critic=other.megatron_step)
    for _ in range(2):  # as loaded, and as it goes on
        expected = weights(critic)
        assert all(torch.equal(expected[name], new) for name, new in weights(other).items())
        assert update(critic, NEAR, step=4) == update(other, NEAR, step=4)
