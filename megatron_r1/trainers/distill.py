"""Learning from a teacher: from its responses, or from its whole distribution at each token."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from megatron_r1.algos.distill import distillation_loss
from megatron_r1.algos.sft import sft_loss
from megatron_r1.checkpoint.store import LoopState
from megatron_r1.config.algo import AlgoConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.stage import DistillConfig
from megatron_r1.data.examples import Example
from megatron_r1.models.policy import Policy
from megatron_r1.trainers.forward_passes import row_logits
from megatron_r1.trainers.output_losses import on_divergence
from megatron_r1.trainers.sft import measuring_nll
from megatron_r1.trainers.supervised import SupervisedParts, train_on_examples
from megatron_r1.types import TrainBatch


@dataclass(frozen=True)
class DistillLoopConfig:
    """The groups of the configuration that the loop reads."""

    stage: DistillConfig
    algo: AlgoConfig
    optimizer: OptimizerConfig
    seed: int


def train_distilled(
    parts: SupervisedParts,
    config: DistillLoopConfig,
    samples: Sequence[Example],
    state: LoopState,
    *,
    teacher: Policy | None,
    heldout: Sequence[Example] = (),
) -> LoopState:
    """Go on from `state` to the end of the last epoch. Every rank of the job calls it.

    Args:
        samples: its responses, one row each.
        teacher: of the same vocabulary, in the same layout; None learns from its responses alone.
        heldout: as `samples`; their loss is recorded as ``heldout/nll``, whatever the objective.
    """
    step, seed = parts.megatron_step, config.seed
    measured = measuring_nll(parts, heldout, config.stage, config.stage.num_steps(len(samples)))
    learn = partial(
        train_on_examples,
        parts,
        config.stage,
        config.optimizer,
        samples,
        state,
        measured_after=measured,
    )
    if teacher is None:
        return learn(step.on_logprobs(sft_loss), seed=seed)

    def complete(batch: TrainBatch) -> TrainBatch:
        with parts.recorder.timed("time/teacher_s"):
            return with_teacher_logits(batch, teacher)

    loss = on_divergence(distillation_loss, step.policy, config.algo)
    return learn(loss, seed=seed, complete=complete)


def with_teacher_logits(batch: TrainBatch, teacher: Policy) -> TrainBatch:
    """The same rows with the teacher's logits, this tensor rank's columns; all of them lie in host
    memory until the update is over."""
    rows = tuple(
        dataclasses.replace(row, teacher_logits_Lv=logits_Lv)
        for row, logits_Lv in zip(batch.rows, row_logits(teacher, batch), strict=True)
    )
    return dataclasses.replace(batch, rows=rows)
