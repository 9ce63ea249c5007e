"""Supervised fine-tuning: responses to imitate, and the loss on others that are held out."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_r1.algos.sft import sft_loss
from megatron_r1.checkpoint.store import LoopState
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.sft import SftConfig
from megatron_r1.config.stage import DistillConfig
from megatron_r1.data.examples import Example
from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import broadcast_object, sum_pairs
from megatron_r1.trainers.forward_passes import row_logprobs
from megatron_r1.trainers.supervised import SupervisedParts, own_share, train_on_examples


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
    return train_on_examples(
        parts,
        stage,
        optimizer,
        samples,
        state,
        parts.megatron_step.on_logprobs(sft_loss),
        seed=seed,
        measured_after=measuring_nll(parts, heldout, stage, stage.num_steps(len(samples))),
    )


def measuring_nll(
    parts: SupervisedParts,
    heldout: Sequence[Example],
    stage: SftConfig | DistillConfig,
    num_steps: int,
) -> Callable[[int], dict[str, float]]:
    """What to record of held-out samples with each update, where there are any."""

    def measured_after(made: int) -> dict[str, float]:
        if not heldout or (made % stage.evaluate_every_steps and made < num_steps):
            return {}
        with parts.recorder.timed("time/evaluation_s"):
            return {"heldout/nll": heldout_nll(parts.megatron_step.policy, heldout)}

    return measured_after


def heldout_nll(policy: Policy, heldout: Sequence[Example]) -> float:
    """Negative log-likelihood in nats per response token, the same on every rank."""
    layout = policy.layout
    batch = own_share(heldout, layout.dp)
    logprobs = row_logprobs(policy, batch)
    pairs = [
        (-float(logprobs_L[row.loss_mask_L].sum()), float(row.loss_mask_L.sum()))
        for row, logprobs_L in zip(batch.rows, logprobs, strict=True)
    ]
    total = sum(nll for nll, _ in pairs), sum(tokens for _, tokens in pairs)
    nll = sum_pairs({"nll": total}, layout.dp)["nll"]
    # Stages before the last have no log-probabilities.
    return broadcast_object(nll, layout.pp, source=layout.pp.size - 1)
