"""Supervised fine-tuning: responses to imitate, and the loss on others that are held out."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_r1.algos.sft import sft_loss
from megatron_r1.checkpoint.store import LoopState
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.sft import SftConfig
from megatron_r1.data.examples import Example
from megatron_r1.parallel.exchange import broadcast_object, sum_pairs
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.supervised import (
    SupervisedParts,
    Update,
    draw_examples,
    own_share,
    train_supervised,
)


def train_sft(
    parts: SupervisedParts,
    stage: SftConfig,
    optimizer: OptimizerConfig,
    samples: Sequence[Example],
    heldout: Sequence[Example],
    state: LoopState,
    *,
    seed: int,
) -> LoopState:
    """Go on from `state` to the end of the last epoch. Every rank of the job calls it.

    Args:
        samples: of one row each.
        heldout: the same; their loss is recorded as ``heldout/nll``.
    """
    megatron_step = parts.megatron_step
    num_steps = stage.num_steps(len(samples))

    def update_of(step: int) -> Update:
        drawn = draw_examples(samples, step, stage.samples_per_step, seed)
        batch = own_share(drawn, megatron_step.policy.layout.dp)
        return Update(batch=batch, loss=sft_loss, num_sequences=len(drawn))

    def measured_after(step: int) -> dict[str, float]:
        if not heldout or (step % stage.evaluate_every_steps and step < num_steps):
            return {}
        with parts.recorder.timed("time/evaluation_s"):
            return {"heldout/nll": heldout_nll(megatron_step, heldout)}

    return train_supervised(
        parts,
        stage,
        optimizer,
        state,
        num_steps=num_steps,
        update_of=update_of,
        measured_after=measured_after,
    )


def heldout_nll(megatron_step: MegatronStep, heldout: Sequence[Example]) -> float:
    """Negative log-likelihood in nats per response token, the same on every rank."""
    layout = megatron_step.policy.layout
    batch = own_share(heldout, layout.dp)
    logprobs = megatron_step.logprobs(batch)
    pairs = [
        (-float(logprobs_L[row.loss_mask_L].sum()), float(row.loss_mask_L.sum()))
        for row, logprobs_L in zip(batch.rows, logprobs, strict=True)
    ]
    total = sum(nll for nll, _ in pairs), sum(tokens for _, tokens in pairs)
    nll = sum_pairs({"nll": total}, layout.dp)["nll"]
    # Stages before the last have no log-probabilities.
    return broadcast_object(nll, layout.pp, source=layout.pp.size - 1)
