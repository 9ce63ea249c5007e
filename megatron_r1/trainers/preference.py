"""Learning from preference pairs without a reward model: DPO."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from megatron_r1.algos.dpo import dpo_pair_loss
from megatron_r1.checkpoint.record import REFERENCE
from megatron_r1.checkpoint.store import LoopState
from megatron_r1.config.algo import DpoConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.stage import DpoStageConfig
from megatron_r1.data.examples import Example
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.parallel.exchange import broadcast_object, sum_pairs
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.supervised import (
    SupervisedParts,
    Update,
    draw_examples,
    own_share,
    train_supervised,
)
from megatron_r1.types import TrainBatch


@dataclass(frozen=True)
class DpoLoopConfig:
    """The groups of the configuration that the loop reads."""

    stage: DpoStageConfig
    algo: DpoConfig
    optimizer: OptimizerConfig
    seed: int


def train_dpo(
    parts: SupervisedParts, config: DpoLoopConfig, pairs: Sequence[Example], state: LoopState
) -> LoopState:
    """Go on from `state` to the end of the last epoch. Every rank of the job calls it.

    Args:
        parts: with a bank whose reference is the policy before its first update.
        pairs: of a chosen and a rejected row each.
    """
    bank, stage, megatron_step = parts.bank, config.stage, parts.megatron_step
    assert bank is not None and REFERENCE in bank, "the stage stores it, or loads it"

    def update_of(step: int) -> Update:
        drawn = draw_examples(pairs, step, stage.pairs_per_step, config.seed)
        batch = own_share(drawn, megatron_step.policy.layout.dp)
        with parts.recorder.timed("time/logprobs_s"):
            batch = with_reference(batch, megatron_step, bank)
        loss = partial(dpo_pair_loss, config=config.algo, num_pairs=len(drawn))
        return Update(batch=batch, loss=loss, num_sequences=2 * len(drawn))

    num_steps = stage.num_steps(len(pairs))
    return train_supervised(
        parts, stage, config.optimizer, state, num_steps=num_steps, update_of=update_of
    )


def with_reference(batch: TrainBatch, megatron_step: MegatronStep, bank: WeightBank) -> TrainBatch:
    """The same rows with the reference's log-probabilities."""
    with bank.use(REFERENCE):
        reference = megatron_step.logprobs(batch)
    rows = tuple(
        dataclasses.replace(row, logprobs_ref_L=ref_L)
        for row, ref_L in zip(batch.rows, reference, strict=True)
    )
    return dataclasses.replace(batch, rows=rows)


def share_ordered_right(
    pairs: Sequence[Example], megatron_step: MegatronStep, bank: WeightBank
) -> float:
    """The share of pairs whose chosen response has gained more on the reference than the rejected
    one, in log-probability; the same on every rank."""
    layout = megatron_step.policy.layout
    batch = with_reference(own_share(pairs, layout.dp), megatron_step, bank)
    gains = [
        float((policy_L - row.logprobs_ref_L)[row.loss_mask_L].sum())
        for row, policy_L in zip(batch.rows, megatron_step.logprobs(batch), strict=True)
    ]
    right = sum(chosen > rejected for chosen, rejected in zip(gains[::2], gains[1::2], strict=True))
    share = sum_pairs({"right": (float(right), len(gains) / 2)}, layout.dp)["right"]
    # Stages before the last have no log-probabilities.
    return broadcast_object(share, layout.pp, source=layout.pp.size - 1)
