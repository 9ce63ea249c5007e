"""Models with a scalar head: their losses on Megatron's schedules, their values, their scores."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_r1.models.policy import Policy
from megatron_r1.models.stream import TokenStream
from megatron_r1.trainers.megatron_step import MegatronStep, TokenLoss
from megatron_r1.trainers.micro_batches import OnMicroBatch, forward_rows
from megatron_r1.types import LossOutput, MicroBatch, TrainBatch


class ValueStep(MegatronStep):
    """A model with a scalar head, gradients and an optimizer.

    Its losses are functions of values_T, float32, and the micro-batch. Values are token-aligned
    without a shift: column t has seen token t.
    """

    def _loss(
        self,
        values_t: Tensor,
        micro: MicroBatch,
        stream: TokenStream,
        loss: TokenLoss,
        temperature: float,
    ) -> LossOutput:
        return loss(stream.join(values_t), micro)


def token_values(
    policy: Policy, batch: TrainBatch, *, on_micro_batch: OnMicroBatch | None = None
) -> list[Tensor]:
    """The value at every token of every row, without gradients; every rank of the job calls it.

    Returns: for each row values_L, float32; zeros on stages before the last.
    """
    return forward_rows(
        policy,
        policy.chunks,
        batch,
        lambda values_t, micro, stream: stream.join(values_t),
        on_micro_batch=on_micro_batch,
    )


def row_scores(
    policy: Policy, batch: TrainBatch, *, on_micro_batch: OnMicroBatch | None = None
) -> Tensor:
    """The value at the one token of each row where its loss mask is True; every rank calls it.

    Returns: scores_N, float32, the same on every rank of the replica.
    """
    by_row = token_values(policy, batch, on_micro_batch=on_micro_batch)
    device, pp = policy.host.device, policy.layout.pp
    scores_N = torch.empty(len(batch.rows), device=device)
    if policy.layout.is_last_stage:
        for index, (row, values_L) in enumerate(zip(batch.rows, by_row, strict=True)):
            scores_N[index] = values_L[row.loss_mask_L.to(device)].squeeze(0)
    if pp.size > 1:
        dist.broadcast(scores_N, dist.get_global_rank(pp.group, pp.size - 1), group=pp.group)
    return scores_N
