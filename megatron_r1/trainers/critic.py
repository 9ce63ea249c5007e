"""PPO's critic: it says what each rollout of a phase may expect, and learns from what came."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial

import torch

from megatron_r1.algos.logprobs import align_to_tokens
from megatron_r1.algos.value import critic_loss
from megatron_r1.config.algo import PpoConfig
from megatron_r1.trainers.forward_passes import row_values
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.micro_batches import OnMicroBatch
from megatron_r1.trainers.minibatches import Minibatch
from megatron_r1.trainers.output_losses import on_values
from megatron_r1.trainers.schedule import learning_rate
from megatron_r1.types import TrainBatch


@dataclass(frozen=True)
class Critic:
    """A model with a scalar head, an optimizer of its own, and what PPO says of both."""

    megatron_step: MegatronStep
    config: PpoConfig

    def add_values(self, minibatch: Minibatch, on_micro_batch: OnMicroBatch) -> Minibatch:
        """The same rows with the values of the states in which their tokens were chosen."""
        rows = minibatch.batch.rows
        seen = row_values(self.megatron_step.policy, minibatch.batch, on_micro_batch=on_micro_batch)
        # The head speaks after each token: of the state in which the next one is chosen.
        filled = tuple(
            dataclasses.replace(
                row,
                values_old_L=align_to_tokens(seen_L.cpu(), torch.arange(row.num_tokens)),
            )
            for row, seen_L in zip(rows, seen, strict=True)
        )
        return dataclasses.replace(minibatch, batch=TrainBatch(rows=filled))

    def update(
        self, minibatch: Minibatch, *, step: int, num_steps: int, on_micro_batch: OnMicroBatch
    ) -> dict[str, float]:
        """One optimizer step on rows with returns. Returns: metrics, all under ``critic/``."""
        result = self.megatron_step.train_step(
            minibatch.batch,
            on_values(partial(critic_loss, clip=self.config.value_clip)),
            lr=learning_rate(step, num_steps, self.config.critic_optimizer),
            num_sequences=minibatch.num_rollouts,
            on_micro_batch=on_micro_batch,
        )
        own = {"train/loss": "critic/loss", "train/grad_norm": "critic/grad_norm"}
        metrics = {
            own.get(name, name): value
            for name, value in result.metrics.items()
            if name in own or name.startswith("critic/")
        }
        return metrics | {"critic/skipped": float(result.skipped)}

    def warms_up(self, step: int) -> bool:
        """Whether update `step` is the critic's alone."""
        return step < self.config.critic_warmup_steps
