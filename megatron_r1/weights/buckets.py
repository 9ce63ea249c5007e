"""Buckets as bytes: laid out, filled from pieces, read again.

A bucket is one flat uint8 tensor for each set of receivers, in which tensors follow one another
without gaps, as SGLang's `flattened_bucket` has it. Wider numbers come first, so that each tensor
begins at a multiple of its numbers' width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from megatron_r1.config.model import ModelConfig
from megatron_r1.weights.boxes import Box, Shape, overlap, shape_of, slices, within
from megatron_r1.weights.engine_layout import Ranks
from megatron_r1.weights.fp8_files import SCALE_SUFFIX
from megatron_r1.weights.names import shard_to_hf
from megatron_r1.weights.plan import Bucket, Piece, Quantizer, Transfer
from megatron_r1.weights.trainer_layout import Holding
from r1_kernels.fp8_blocks import BLOCK, quantize

CPU = torch.device("cpu")

NewBuffer = Callable[[int, torch.device], Tensor]
"""Makes uint8 of so many bytes."""


def plain_buffer(num_bytes: int, device: torch.device) -> Tensor:
    return torch.empty(num_bytes, dtype=torch.uint8, device=device)


class ReusedBuffers:
    """Memory of buckets that were sent, for those that come after.

    A thread of the collective may keep a buffer a moment longer than the broadcast takes; buckets
    in memory of their own would then be three at a time.
    """

    def __init__(self, num_bytes: int) -> None:
        """`num_bytes`: of each buffer. A larger one is made when it is needed, after the free ones
        are let go of."""
        self._num_bytes = num_bytes
        self._free: list[Tensor] = []

    def take(self, num_bytes: int, device: torch.device) -> Tensor:
        """The beginning of a free buffer, or of a new one; a `NewBuffer`."""
        if num_bytes > self._num_bytes:
            self._free.clear()
            return plain_buffer(num_bytes, device)
        whole = self._free.pop() if self._free else plain_buffer(self._num_bytes, device)
        return whole[:num_bytes]

    def give_back(self, flat: Tensor) -> None:
        """What `take` returned, the beginning of a buffer, when nobody reads it any more. The
        wire's thread calls this while another takes."""
        storage = flat.untyped_storage()
        if storage.nbytes() == self._num_bytes:
            self._free.append(torch.empty(0, dtype=torch.uint8, device=flat.device).set_(storage))


@dataclass(frozen=True)
class Entry:
    """One tensor of a flat buffer: a box of a Hugging Face tensor, or of its scales."""

    name: str
    dtype: torch.dtype
    box: Box
    """Of scales, in blocks."""
    start: int
    """First byte."""

    @property
    def shape(self) -> Shape:
        return shape_of(self.box)

    @property
    def stop(self) -> int:
        return self.start + prod(self.shape) * self.dtype.itemsize

    def view(self, flat: Tensor) -> Tensor:
        return flat[self.start : self.stop].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class Message:
    """What some ranks of every engine get of a bucket: one flat buffer."""

    receivers: Ranks
    entries: tuple[Entry, ...]

    @property
    def num_bytes(self) -> int:
        return self.entries[-1].stop

    def describe(self) -> dict[str, list[Any]]:
        """The fields of SGLang's update_weights_from_distributed that say what is coming."""
        return {
            "names": [entry.name for entry in self.entries],
            "dtypes": [str(entry.dtype).removeprefix("torch.") for entry in self.entries],
            "shapes": [list(entry.shape) for entry in self.entries],
        }


def messages(bucket: Bucket) -> list[Message]:
    """How the bytes of a bucket are laid out; both sides come to the same."""
    tensors: dict[Ranks, list[tuple[str, torch.dtype, Box]]] = defaultdict(list)
    for transfer in bucket.transfers:
        for part in transfer.parts:
            tensors[part.receivers] += _tensors(transfer, part.box)
    return [
        Message(receivers, tuple(_entries(sorted(found, key=lambda t: -t[1].itemsize))))
        for receivers, found in tensors.items()
    ]


def give(
    transfer: Transfer, piece: Piece, shard: Tensor, holding: Holding, model: ModelConfig
) -> dict[str, Tensor]:
    """A piece, from its holder's shard of the Megatron parameter: by name, with scales if it makes
    them; a view of the shard where it can be."""
    shard_number = holding.shard_of(piece.rank)
    boxes = [slices(holding.split, shape)[shard_number] for shape in transfer.mapping.shapes]
    number, shapes = transfer.number, [shape_of(box) for box in boxes]
    part = shard_to_hf(transfer.mapping, number, shard, shapes, model)
    values = part[within(piece.box, boxes[number])]
    return sent_as(transfer, values, quantized=transfer.quantizer is Quantizer.holders)


class OpenBucket:
    """A bucket that its sender is filling."""

    def __init__(
        self,
        bucket: Bucket,
        device: torch.device = CPU,
        new_buffer: NewBuffer = plain_buffer,
    ) -> None:
        self._messages = messages(bucket)
        self.buffers = [new_buffer(message.num_bytes, device) for message in self._messages]
        self._places: dict[str, list[tuple[Box, Tensor]]] = defaultdict(list)
        for message, flat in zip(self._messages, self.buffers, strict=True):
            for entry in message.entries:
                self._places[entry.name].append((entry.box, entry.view(flat)))

    def __iter__(self) -> Iterator[tuple[Message, Tensor]]:
        """Messages and their bytes."""
        return zip(self._messages, self.buffers, strict=True)

    def views(self, transfer: Transfer, box: Box) -> dict[str, Tensor]:
        """Where a box of a transfer is sent from, tensors by name in the order of `give`. For
        transfers in one part."""
        found = {}
        for name, _, part in _tensors(transfer, box):
            ((target, view),) = self._places[name]
            found[name] = view[within(part, target)]
        return found

    def put(self, transfer: Transfer, box: Box, tensors: Mapping[str, Tensor]) -> None:
        """Copy a box of a transfer, as `give` returned it, to where it is sent from."""
        for name, values in tensors.items():
            source = _in_blocks(box) if name.endswith(SCALE_SUFFIX) else box
            for target, view in self._places[name]:
                common = overlap(source, target)
                if common:
                    view[within(common, target)] = values[within(common, source)]


def sent_as(transfer: Transfer, values: Tensor, *, quantized: bool) -> dict[str, Tensor]:
    """Values by name; quantised, codes and scales."""
    if not quantized:
        return {transfer.name: values}
    codes, scales = quantize(values)
    return {transfer.name: codes, transfer.name + SCALE_SUFFIX: scales}


def _tensors(transfer: Transfer, box: Box) -> Iterator[tuple[str, torch.dtype, Box]]:
    if transfer.quantized:
        yield transfer.name, torch.float8_e4m3fn, box
        yield transfer.name + SCALE_SUFFIX, torch.float32, _in_blocks(box)
    else:
        yield transfer.name, transfer.dtype, box


def _entries(tensors: list[tuple[str, torch.dtype, Box]]) -> Iterator[Entry]:
    start = 0
    for name, dtype, box in tensors:
        entry = Entry(name, dtype, box, start)
        yield entry
        start = entry.stop


def _in_blocks(box: Box) -> Box:
    return tuple((start // BLOCK, -(-stop // BLOCK)) for start, stop in box)
