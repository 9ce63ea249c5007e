"""Write a model as safetensors files of limited size, as Hugging Face lays them out.

Sizes are known before the first tensor is, so each tensor is written to its own place at once.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from megatron_r1.checkpoint.safetensors_dir import DTYPES, INDEX, SINGLE
from megatron_r1.checkpoint.whole_file import whole_file

_DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that is going to be written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def shard_name(number: int, count: int) -> str:
    """File `number`, from 0, of `count`."""
    return SINGLE if count == 1 else f"model-{number + 1:05d}-of-{count:05d}.safetensors"


class ShardFile:
    """One file while it is written."""

    def __init__(self, descriptor: int, specs: Sequence[TensorSpec]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        self._descriptor = descriptor
        self._specs = {spec.name: spec for spec in specs}
        self._places: dict[str, int] = {}
        place = 0
        # Widest types first, as the format's own library has it: every tensor is aligned.
        for spec in sorted(specs, key=lambda spec: -spec.dtype.itemsize):
            header[spec.name] = {
                "dtype": _DTYPE_NAMES[spec.dtype],
                "shape": list(spec.shape),
                "data_offsets": [place, place + spec.num_bytes],
            }
            self._places[spec.name] = place
            place += spec.num_bytes
        encoded = json.dumps(header, separators=(",", ":")).encode()
        encoded += b" " * (-len(encoded) % 8)
        self._first_byte = 8 + len(encoded)
        _write_at(descriptor, struct.pack("<Q", len(encoded)) + encoded, 0)

    def write(self, name: str, tensor: Tensor) -> None:
        """Put a tensor where the header says; each is written once."""
        spec = self._specs.pop(name)
        assert (tensor.dtype, tuple(tensor.shape)) == (spec.dtype, spec.shape), (spec, tensor.shape)
        if tensor.numel():
            content = tensor.contiguous().flatten().view(torch.uint8).numpy()
            _write_at(self._descriptor, content, self._first_byte + self._places[name])

    def check_whole(self) -> None:
        assert not self._specs, f"not written: {list(self._specs)}"


@contextmanager
def shard_file(path: Path, specs: Sequence[TensorSpec]) -> Iterator[ShardFile]:
    """A file that gets its name when all its tensors are written and on the disk."""
    with whole_file(path) as handle:
        shard = ShardFile(handle.fileno(), specs)
        yield shard
        shard.check_whole()


def write_index(directory: Path, shards: Sequence[tuple[str, Sequence[TensorSpec]]]) -> None:
    """model.safetensors.index.json; a model of one file needs none."""
    if len(shards) == 1:
        return
    index = {
        "metadata": {"total_size": sum(s.num_bytes for _, specs in shards for s in specs)},
        "weight_map": {spec.name: file for file, specs in shards for spec in specs},
    }
    (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def _write_at(descriptor: int, content: object, offset: int) -> None:
    """All of it; one call writes at most 2 GB."""
    rest = memoryview(content)  # type: ignore[arg-type]
    while rest.nbytes:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written
