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
from megatron_r1.models.policy import Policy
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.parallel.exchange import broadcast_object, sum_pairs
from megatron_r1.trainers.forward_passes import row_logprobs
from megatron_r1.trainers.supervised import SupervisedParts, own_share, train_on_examples
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
    bank, stage, policy = parts.bank, config.stage, parts.megatron_step.policy
    assert bank is not None and REFERENCE in bank, "the stage stores it, or loads it"

    def complete(batch: TrainBatch) -> TrainBatch:
        with parts.recorder.timed("time/logprobs_s"):
            return with_reference(batch, policy, bank)

    loss = partial(dpo_pair_loss, config=config.algo, num_pairs=stage.examples_per_step)
    return train_on_examples(
        parts,
        stage,
        config.optimizer,
        pairs,
        state,
        parts.megatron_step.on_logprobs(loss),
        seed=config.seed,
        complete=complete,
    )


def with_reference(batch: TrainBatch, policy: Policy, bank: WeightBank) -> TrainBatch:
    """The same rows with the reference's log-probabilities."""
    with bank.use(REFERENCE):
        reference = row_logprobs(policy, batch)
    rows = tuple(
        dataclasses.replace(row, logprobs_ref_L=ref_L)
        for row, ref_L in zip(batch.rows, reference, strict=True)
    )
    return dataclasses.replace(batch, rows=rows)


def share_ordered_right(pairs: Sequence[Example], policy: Policy, bank: WeightBank) -> float:
    """The share of pairs whose chosen response has gained more on the reference than the rejected
    one, in log-probability; the same on every rank."""
    layout = policy.layout
    batch = with_reference(own_share(pairs, layout.dp), policy, bank)
    gains = [
        float((policy_L - row.logprobs_ref_L)[row.loss_mask_L].sum())
        for row, policy_L in zip(batch.rows, row_logprobs(policy, batch), strict=True)
    ]
    right = sum(chosen > rejected for chosen, rejected in zip(gains[::2], gains[1::2], strict=True))
    share = sum_pairs({"right": (float(right), len(gains) / 2)}, layout.dp)["right"]
    # Stages before the last have no log-probabilities.
    return broadcast_object(share, layout.pp, source=layout.pp.size - 1)
