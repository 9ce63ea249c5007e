"""Reward models learn from pairs or from labelled responses, and are measured on others."""

from __future__ import annotations

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
from megatron_r1.trainers.forward_passes import row_scores
from megatron_r1.trainers.output_losses import TokenLoss, on_values
from megatron_r1.trainers.supervised import SupervisedParts, own_share, train_on_examples


@dataclass(frozen=True)
class RewardTask:
    """What sets the kinds of reward models apart."""

    loss: TokenLoss
    """Of a step with `stage.examples_per_step`."""
    measure: Callable[[Tensor, Tensor], dict[str, float]]
    """Of held-out examples: (scores, labels), each with a row an example."""


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
    policy, num_steps = parts.megatron_step.policy, stage.num_steps(len(examples))

    def measured_after(step: int) -> dict[str, float]:
        if not heldout or (step % stage.evaluate_every_steps and step < num_steps):
            return {}
        with parts.recorder.timed("time/evaluation_s"):
            found = heldout_metrics(policy, heldout, task)
        return {f"heldout/{name}": value for name, value in found.items()}

    return train_on_examples(
        parts,
        stage,
        optimizer,
        examples,
        state,
        on_values(task.loss),
        seed=seed,
        measured_after=measured_after,
    )


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
