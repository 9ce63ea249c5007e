"""Pieces of a bucket, from the ranks that hold them to the rank that sends it."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import Work

from megatron_r1.parallel.layout import Axis
from megatron_r1.weights.boxes import shape_of, within
from megatron_r1.weights.buckets import NewBuffer, OpenBucket, give, plain_buffer, sent_as
from megatron_r1.weights.names import NameMapping
from megatron_r1.weights.plan import Bucket, Piece, Plan, Quantizer, Transfer

Parameters = Mapping[str, Tensor]
"""Of this rank, by `TrainerLayout.local_name`: parameters, and the biases of routers."""

_Pending = list[tuple[Work, Tensor]]
"""What is on its way, and the memory that has to last until then."""


class Gatherer:
    """This rank's part in filling buckets.

    Every rank goes through the buckets in one order, and through the transfers of each and their
    pieces as they stand in the plan: what two ranks exchange they exchange in the same order. What
    lies in one piece goes from the weights into the bucket without a copy on either side; columns,
    and whatever is put into another form on the way, pass through a buffer, one at a time.
    """

    def __init__(
        self,
        plan: Plan,
        parameters: Parameters,
        world: Axis,
        new_buffer: NewBuffer = plain_buffer,
    ) -> None:
        """`world` is all of the trainer's ranks; buckets are filled in `new_buffer`s."""
        self._plan = plan
        self._parameters = parameters
        self._group = world.group
        self.rank = world.rank
        self._stage = plan.trainer.stage_of(world.rank)
        self._new_buffer = new_buffer
        self._device = next(iter(parameters.values())).device
        self.quantize_s = 0.0
        """Spent in making FP8 blocks."""

    def takes_part(self, bucket: Bucket) -> bool:
        """Whether this rank gives something for the bucket, or sends it."""
        return bucket.sender == self.rank or any(
            piece.rank == self.rank for transfer in bucket.transfers for piece in transfer.pieces
        )

    def fill(self, bucket: Bucket) -> OpenBucket | None:
        """Give what this rank has of a bucket. Returns the full one on its sender."""
        pending: _Pending = []
        opened = None
        if bucket.sender == self.rank:
            opened = OpenBucket(bucket, self._device, self._new_buffer)
        for transfer in bucket.transfers:
            if opened is None:
                self._give(transfer, pending)
            elif transfer.quantizer is Quantizer.sender:
                values = torch.empty(
                    shape_of(transfer.box), dtype=transfer.dtype, device=self._device
                )
                self._take_whole(transfer, values)
                opened.put(transfer, transfer.box, self._timed(transfer, values))
            else:
                for piece in transfer.pieces:
                    self._take(transfer, piece, opened.views(transfer, piece.box), pending)
        _wait(pending)
        return opened

    def _give(self, transfer: Transfer, pending: _Pending) -> None:
        for piece in transfer.pieces:
            if piece.rank != self.rank:
                continue
            storage = self._parameter(transfer.mapping).untyped_storage().data_ptr()
            for values in self._values(transfer, piece).values():
                flat = _bytes_of(values.contiguous())
                work = dist.isend(flat, transfer.sender, group=self._group)
                if flat.untyped_storage().data_ptr() == storage:
                    pending.append((work, flat))
                else:
                    work.wait()

    def _take_whole(self, transfer: Transfer, values: Tensor) -> None:
        """Put a tensor together that the sender quantises."""
        pending: _Pending = []
        for piece in transfer.pieces:
            target = values[within(piece.box, transfer.box)]
            self._take(transfer, piece, {transfer.name: target}, pending)
        _wait(pending)

    def _take(
        self, transfer: Transfer, piece: Piece, targets: Mapping[str, Tensor], pending: _Pending
    ) -> None:
        """A piece, to where its tensors belong."""
        if piece.rank == self.rank:
            for name, values in self._values(transfer, piece).items():
                targets[name].copy_(values)
            return
        for target in targets.values():
            if target.is_contiguous():
                flat = _bytes_of(target)
                pending.append((dist.irecv(flat, piece.rank, group=self._group), flat))
            else:
                buffer = torch.empty(target.shape, dtype=target.dtype, device=target.device)
                dist.recv(_bytes_of(buffer), piece.rank, group=self._group)
                target.copy_(buffer)

    def _values(self, transfer: Transfer, piece: Piece) -> dict[str, Tensor]:
        """A piece that this rank holds, as it is given."""
        started_s = time.monotonic()
        shard = self._parameter(transfer.mapping)
        holding = self._plan.trainer.holding(transfer.mapping)
        found = give(transfer, piece, shard, holding, self._plan.trainer.model)
        if transfer.quantizer is Quantizer.holders:
            self.quantize_s += time.monotonic() - started_s
        return found

    def _timed(self, transfer: Transfer, values: Tensor) -> dict[str, Tensor]:
        started_s = time.monotonic()
        found = sent_as(transfer, values, quantized=True)
        self.quantize_s += time.monotonic() - started_s
        return found

    def _parameter(self, mapping: NameMapping) -> Tensor:
        name = self._plan.trainer.local_name(mapping, self._stage)
        return self._parameters[name].detach()


def _bytes_of(values: Tensor) -> Tensor:
    """The memory of contiguous numbers, of whatever type."""
    return values.view(-1).view(torch.uint8)


def _wait(pending: _Pending) -> None:
    for work, _ in pending:
        work.wait()
    pending.clear()
