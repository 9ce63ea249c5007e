"""A batch through Megatron-Core's schedules: rows to micro-batches, forward, and backward if asked.

What is made of a micro-batch's output is the caller's: `output_losses.py` has losses,
`forward_passes.py` numbers for every token.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from megatron_r1.data.packing import build_micro_batch, pack_best_fit, pack_equal_counts
from megatron_r1.models.policy import Policy
from megatron_r1.models.stream import TokenStream
from megatron_r1.types import MicroBatch, TrainBatch

Finish = Callable[[Tensor, MicroBatch, TokenStream], tuple[Tensor, dict[str, Any]]]
"""(the model's output for the tokens that this rank holds, micro-batch, its stream) -> loss and
output."""

OnMicroBatch = Callable[[int, int], None]
"""Called after each micro-batch of this rank with micro-batches done and to do."""


def run_micro_batches(
    policy: Policy,
    chunks: Sequence[torch.nn.Module],
    batch: TrainBatch,
    bins: list[list[int]],
    finish: Finish,
    *,
    num_sequences: int = 1,
    with_mtp: bool = False,
    wants_hidden: bool = False,
    forward_only: bool = False,
    on_micro_batch: OnMicroBatch | None = None,
) -> list[dict[str, Any]]:
    """Run Megatron's schedule over the bins' rows; every rank of the job calls it.

    Args:
        chunks: the policy's, or wrappers around them (Megatron's DDP).
        bins: of `plan_micro_batches`.
        wants_hidden: the output is hidden states in place of logits.
    Returns: the outputs of `finish`, one for each micro-batch on the last stage, none before it.
    """
    chunks = list(chunks)
    # Each chunk goes through the micro-batches at its own pace.
    micros = [(_build(policy, batch, rows) for rows in bins) for _ in chunks]
    done = 0

    def forward_step(micros: Iterator[MicroBatch], chunk: torch.nn.Module) -> Any:
        nonlocal done
        micro = next(micros)
        stream = policy.training_stream(
            micro, num_sequences, with_mtp=with_mtp, wants_hidden=wants_hidden
        )
        output = policy.forward(stream.take(micro.tokens_T, fill=0), stream, chunk=chunk)
        if chunk is chunks[-1]:
            done += 1
            if on_micro_batch is not None:
                on_micro_batch(done, len(bins))

        def loss_func(output: Tensor) -> tuple[Tensor, Tensor, dict[str, Any]]:
            loss, result = finish(output, micro, stream)
            return loss, torch.ones((), dtype=torch.int, device=loss.device), result

        return output, loss_func

    return get_forward_backward_func()(
        forward_step_func=forward_step,
        data_iterator=micros,
        model=chunks,
        num_microbatches=len(bins),
        seq_length=policy.layout.config.max_tokens_per_microbatch,
        micro_batch_size=1,
        forward_only=forward_only,
    )


def forward_rows(
    policy: Policy,
    batch: TrainBatch,
    per_token: Callable[[Tensor, MicroBatch, TokenStream], Tensor],
    *,
    wants_hidden: bool = False,
    on_micro_batch: OnMicroBatch | None = None,
) -> list[Tensor]:
    """A number for every token of every row, without gradients.

    Args:
        per_token: (output, micro-batch, stream) -> [T], float32.
    Returns: for each row [L]; zeros on stages before the last, where nobody reads them.
    """

    def finish(
        output: Tensor, micro: MicroBatch, stream: TokenStream
    ) -> tuple[Tensor, dict[str, Any]]:
        numbers_T = per_token(output, micro, stream)
        return numbers_T.sum(), {"rows": numbers_T.split(micro.seq_lengths)}

    bins = plan_micro_batches(policy, batch)
    with policy.inference():
        outputs = run_micro_batches(
            policy,
            policy.chunks,
            batch,
            bins,
            finish,
            wants_hidden=wants_hidden,
            forward_only=True,
            on_micro_batch=on_micro_batch,
        )
    by_row = [torch.zeros_like(row.tokens_L, dtype=torch.float32) for row in batch.rows]
    for rows, output in zip(bins, outputs, strict=policy.layout.is_last_stage):
        for row, numbers_L in zip(rows, output["rows"], strict=False):
            by_row[row] = numbers_L
    return by_row


def plan_micro_batches(policy: Policy, batch: TrainBatch) -> list[list[int]]:
    """Rows of each micro-batch; as many micro-batches on every replica."""
    layout = policy.layout
    capacity = layout.config.packable_tokens(policy.precision)
    together = batch.rows_together
    lengths = [
        sum(row.num_tokens for row in batch.rows[first : first + together])
        for first in range(0, len(batch.rows), together)
    ]
    num_bins = max(1, len(pack_best_fit(lengths, capacity)))
    most = torch.tensor(num_bins, device=policy.host.device)
    dist.all_reduce(most, op=dist.ReduceOp.MAX, group=layout.dp.group)
    num_bins = int(most.item())
    if len(policy.chunks) > 1:  # interleaved chunks take micro-batches in groups of the stages
        num_bins += -num_bins % layout.pp.size
    bins = pack_equal_counts(lengths, capacity, num_bins=num_bins)
    return [
        [row for unit in units for row in range(unit * together, (unit + 1) * together)]
        for units in bins
    ]


def _build(policy: Policy, batch: TrainBatch, rows: Sequence[int]) -> MicroBatch:
    # Context ranks fill up what each of them holds.
    multiple = 1 if policy.layout.cp.size > 1 else policy.stream_multiple
    micro = build_micro_batch([batch.rows[r] for r in rows], pad_to_multiple=multiple, pad_token=0)
    return move_to_device(micro, policy.host.device)


def move_to_device(micro: MicroBatch, device: torch.device) -> MicroBatch:
    """The same micro-batch with its tensors on `device`."""
    fields = {
        name: value.to(device, non_blocking=True) if isinstance(value, Tensor) else value
        for name, value in vars(micro).items()
    }
    return MicroBatch(**fields)
