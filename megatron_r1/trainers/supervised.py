"""Learning from examples: the loop of everything whose rows are there before it begins."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.stage import ExamplesConfig, StageConfig
from megatron_r1.data.epochs import item_of_draw
from megatron_r1.data.examples import Example
from megatron_r1.data.packing import balance_rows
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.parallel.layout import Axis
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.trainers.job import Job, stop_if_asked
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.output_losses import OutputLoss
from megatron_r1.trainers.schedule import learning_rate
from megatron_r1.types import TrainBatch


@dataclass(frozen=True)
class SupervisedParts:
    """What the loop works with; built by a stage."""

    megatron_step: MegatronStep
    store: CheckpointStore
    recorder: Recorder
    job: Job
    bank: WeightBank | None = None
    """Its reference is saved with the policy, where there is one."""


@dataclass(frozen=True)
class Update:
    """What one update is made of."""

    batch: TrainBatch
    """This replica's rows."""
    loss: OutputLoss
    num_sequences: int
    """Rows of the update, over all replicas."""


def train_on_examples(
    parts: SupervisedParts,
    stage: ExamplesConfig,
    optimizer: OptimizerConfig,
    examples: Sequence[Example],
    state: LoopState,
    loss: OutputLoss,
    *,
    seed: int,
    complete: Callable[[TrainBatch], TrainBatch] | None = None,
    measured_after: Callable[[int], Mapping[str, float]] | None = None,
) -> LoopState:
    """Go on from `state` to the end of the last epoch. Every rank of the job calls it.

    Args:
        examples: of one file; each epoch goes through them in an order of its own.
        loss: of an update of `stage.examples_per_step`.
        complete: adds what the loss needs of other models to this replica's rows.
        measured_after: see `train_supervised`.
    """
    dp, count = parts.megatron_step.policy.layout.dp, stage.examples_per_step

    def update_of(step: int) -> Update:
        drawn = draw_examples(examples, step, count, seed)
        batch = own_share(drawn, dp)
        if complete is not None:
            batch = complete(batch)
        return Update(batch=batch, loss=loss, num_sequences=count * len(drawn[0]))

    return train_supervised(
        parts,
        stage,
        optimizer,
        state,
        num_steps=stage.num_steps(len(examples)),
        update_of=update_of,
        measured_after=measured_after,
    )


def train_supervised(
    parts: SupervisedParts,
    stage: StageConfig,
    optimizer: OptimizerConfig,
    state: LoopState,
    *,
    num_steps: int,
    update_of: Callable[[int], Update],
    measured_after: Callable[[int], Mapping[str, float]] | None = None,
) -> LoopState:
    """Go on from `state` to `num_steps` updates. Every rank of the job calls it.

    Args:
        update_of: what to learn from in each step, a function of its number alone.
        measured_after: figures to record with the update of this number, from 1.

    Raises:
        StoppedEarly: a signal ended the run.
    """
    megatron_step, recorder, store = parts.megatron_step, parts.recorder, parts.store

    def save(state: LoopState) -> None:
        store.save(state, megatron_step.policy, megatron_step.optimizer, parts.bank)

    while state.step < num_steps:
        stop_if_asked(parts.job, store, state, save)
        update = update_of(state.step)
        with recorder.timed("time/update_s"):
            result = megatron_step.train_step(
                update.batch,
                update.loss,
                lr=learning_rate(state.step, num_steps, optimizer),
                num_sequences=update.num_sequences,
                on_micro_batch=recorder.on_micro_batch("update"),
            )
        state = dataclasses.replace(state, step=state.step + 1)
        if measured_after is not None:
            measured = measured_after(state.step)
            result = dataclasses.replace(result, metrics={**result.metrics, **measured})
        recorder.step(state.step, result)
        parts.job.step_made(state.step)
        store.poll()
        if state.step % stage.checkpoint_every_steps == 0 or state.step == num_steps:
            with recorder.timed("time/checkpoint_s"), parts.job.checkpointing():
                save(state)
    with parts.job.checkpointing():
        store.poll(wait=True)
    parts.job.between_loops()
    return state


def draw_examples(examples: Sequence[Example], step: int, count: int, seed: int) -> list[Example]:
    """Those of update `step`: the next `count` in the order of epochs."""
    draws = range(step * count, (step + 1) * count)
    return [examples[item_of_draw(draw, len(examples), seed)] for draw in draws]


def own_share(examples: Sequence[Example], dp: Axis) -> TrainBatch:
    """This replica's examples of a step, by length. A token's weight makes the loss a mean over all
    response tokens of the step."""
    weight = 1.0 / sum(int(row.loss_mask_L.sum()) for rows in examples for row in rows)
    lengths = [sum(row.num_tokens for row in rows) for rows in examples]
    share = balance_rows(lengths, dp.size)[dp.rank]
    rows = tuple(dataclasses.replace(row, weight=weight) for i in share for row in examples[i])
    return TrainBatch(rows=rows, rows_together=len(examples[0]))
