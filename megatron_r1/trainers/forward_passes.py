"""Passes without gradients: what a model says of every token of every row.

Every rank of the job calls them. Stages before the last return zeros, where nobody reads them.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_r1.models.policy import Policy
from megatron_r1.trainers.micro_batches import OnMicroBatch, forward_rows
from megatron_r1.trainers.output_losses import reads_hidden, token_logprobs
from megatron_r1.types import TrainBatch


def row_logprobs(
    policy: Policy,
    batch: TrainBatch,
    *,
    temperature: float = 1.0,
    on_micro_batch: OnMicroBatch | None = None,
) -> list[Tensor]:
    """For each row logprobs_L, nats, float32."""
    return forward_rows(
        policy,
        batch,
        lambda output, micro, stream: token_logprobs(policy, output, micro, stream, temperature)[0],
        wants_hidden=reads_hidden(policy),
        on_micro_batch=on_micro_batch,
    )


def row_logits(policy: Policy, batch: TrainBatch) -> list[Tensor]:
    """For each row logits_Lv, this tensor rank's columns, in the model's own type; all of them lie
    in host memory."""
    return forward_rows(
        policy, batch, lambda logits_tv, micro, stream: stream.join(logits_tv).cpu()
    )


def row_values(
    policy: Policy, batch: TrainBatch, *, on_micro_batch: OnMicroBatch | None = None
) -> list[Tensor]:
    """For each row scores_L, float32: what a scalar head says after each token."""
    return forward_rows(
        policy,
        batch,
        lambda scores_t, micro, stream: stream.join(scores_t),
        on_micro_batch=on_micro_batch,
    )


def row_scores(
    policy: Policy, batch: TrainBatch, *, on_micro_batch: OnMicroBatch | None = None
) -> Tensor:
    """What a scalar head says after the one token of each row where its loss mask is True.

    Returns: scores_N, float32, the same on every rank of the replica.
    """
    by_row = row_values(policy, batch, on_micro_batch=on_micro_batch)
    device, pp = policy.host.device, policy.layout.pp
    scores_N = torch.empty(len(batch.rows), device=device)
    if policy.layout.is_last_stage:
        for index, (row, scores_L) in enumerate(zip(batch.rows, by_row, strict=True)):
            scores_N[index] = scores_L[row.loss_mask_L.to(device)].squeeze(0)
    if pp.size > 1:
        dist.broadcast(scores_N, dist.get_global_rank(pp.group, pp.size - 1), group=pp.group)
    return scores_N
