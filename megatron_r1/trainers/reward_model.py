"""Reward models learn from pairs or from labelled responses, and are measured on others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from megatron_r1.checkpoint.store import LoopState
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.stage import RewardModelConfig
from megatron_r1.data.examples import Example
from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import all_gather_objects
from megatron_r1.trainers.megatron_step import TokenLoss
from megatron_r1.trainers.supervised import (
    SupervisedParts,
    Update,
    draw_examples,
    own_share,
    train_supervised,
)
from megatron_r1.trainers.value_step import row_scores


@dataclass(frozen=True)
class RewardTask:
    """What sets the kinds of reward models apart."""

    loss: Callable[[int], TokenLoss]
    """Of a step with so many examples."""
    measure: Callable[[Tensor, Tensor], dict[str, float]]
    """Of held-out examples: (scores, labels), each with a row an example."""
    examples_per_step: int


def train_reward_model(
    parts: SupervisedParts,
    task: RewardTask,
    stage: RewardModelConfig,
    optimizer: OptimizerConfig,
    examples: Sequence[Example],
    heldout: Sequence[Example],
    state: LoopState,
    *,
    seed: int,
) -> LoopState:
    """Go on from `state` to the end of the last epoch. Every rank of the job calls it."""
    megatron_step, count = parts.megatron_step, task.examples_per_step
    num_steps = steps_in_epochs(stage, len(examples), count)

    def update_of(step: int) -> Update:
        drawn = draw_examples(examples, step, count, seed)
        batch = own_share(drawn, megatron_step.policy.layout.dp)
        return Update(batch=batch, loss=task.loss(count), num_sequences=count * len(drawn[0]))

    def measured_after(step: int) -> dict[str, float]:
        if not heldout or (step % stage.evaluate_every_steps and step < num_steps):
            return {}
        with parts.recorder.timed("time/evaluation_s"):
            found = heldout_metrics(megatron_step.policy, heldout, task)
        return {f"heldout/{name}": value for name, value in found.items()}

    return train_supervised(
        parts,
        stage,
        optimizer,
        state,
        num_steps=num_steps,
        update_of=update_of,
        measured_after=measured_after,
    )


def steps_in_epochs(stage: RewardModelConfig, num_examples: int, examples_per_step: int) -> int:
    """Updates of all epochs; the last one may begin another. 258 for the paper's 66,000 pairs."""
    return math.ceil(stage.num_epochs * num_examples / examples_per_step)


def heldout_metrics(
    policy: Policy, heldout: Sequence[Example], task: RewardTask
) -> dict[str, float]:
    """Measures of all held-out examples, the same on every rank; every rank calls it."""
    batch = own_share(heldout, policy.layout.dp)
    scores = row_scores(policy, batch).tolist()
    labels = [row.label for row in batch.rows]
    gathered = all_gather_objects((scores, labels), policy.layout.dp)
    together = len(heldout[0])
    scores_NK, labels_NK = (
        torch.tensor([number for part in gathered for number in part[i]]).view(-1, together)
        for i in range(2)
    )
    return task.measure(scores_NK, labels_NK)
