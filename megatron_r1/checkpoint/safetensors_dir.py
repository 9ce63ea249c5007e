"""A Hugging Face model's weights on disk: read by the index, one tensor at a time.

The format: eight bytes with the header's length, the header (JSON: dtype, shape and place of each
tensor), the tensors' bytes. `model.safetensors.index.json` says which file holds which tensor; a
model of one file has none. Each tensor is a memory map of its own, so that memory holds what is
in use.
"""

from __future__ import annotations

import json
import mmap
import struct
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from megatron_r1.errors import CheckpointError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
DTYPES = {
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
}
"""Of weights; the names are the format's."""


@dataclass(frozen=True)
class TensorEntry:
    """What a header says of a tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    start: int
    """Of its bytes in the file."""
    stop: int


class SafetensorsDir:
    """The weights of one directory; every header has been read and compared with its file."""

    def __init__(self, path: Path) -> None:
        """Read the index and all headers.

        Raises:
            CheckpointError: no weights, a file that is missing, cut short or unreadable, a tensor
                that the index names and no header, or the other way round.
        """
        self.path = path
        self.entries: dict[str, TensorEntry] = {}
        index = read_index(path)
        for file in sorted(set(index.values())):
            expected = [name for name, holder in index.items() if holder == file]
            if not (path / file).is_file():
                raise CheckpointError(
                    f"{path / file} is missing; {path / INDEX} says that it holds {expected[0]} "
                    f"and {len(expected) - 1} other tensors"
                )
            found = read_header(path / file)
            for name in expected:
                if name not in found:
                    raise CheckpointError(
                        f"{path / file} does not hold {name}, against {path / INDEX}"
                    )
            for name in found:
                if index.get(name) != file:
                    raise CheckpointError(f"{path / file} holds {name}, against {path / INDEX}")
            self.entries |= found

    def tensor(self, name: str) -> Tensor:
        """A tensor, mapped from its file and not to be written to."""
        entry = self.entries[name]
        tensor = map_bytes(entry.file, entry.start, entry.stop - entry.start)
        return tensor.view(DTYPES[entry.dtype]).view(entry.shape)


def map_bytes(file: Path, start: int, length: int) -> Tensor:
    """Bytes of a file as uint8; the map is given back with the last tensor on it."""
    if length == 0:
        return torch.empty(0, dtype=torch.uint8)
    before = start % mmap.ALLOCATIONGRANULARITY
    with open(file, "rb") as handle:
        window = mmap.mmap(
            handle.fileno(), length + before, offset=start - before, access=mmap.ACCESS_READ
        )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(window, dtype=torch.uint8, count=length, offset=before)


def read_index(path: Path) -> dict[str, str]:
    """Which file holds which tensor, by the index or, for a model of one file, its header.

    Raises:
        CheckpointError: neither is there, or the index is no such thing.
    """
    index_file = path / INDEX
    if not index_file.is_file():
        if (path / SINGLE).is_file():
            return dict.fromkeys(read_header(path / SINGLE), SINGLE)
        raise CheckpointError(
            f"{path} holds no weights: neither {INDEX} nor {SINGLE} is there. Other formats, such "
            "as pytorch_model.bin, are not read"
        )
    index = read_json(index_file).get("weight_map")
    if not isinstance(index, dict) or not all(isinstance(file, str) for file in index.values()):
        raise CheckpointError(f"{index_file} has no weight_map of tensors to files")
    return index


def read_header(file: Path) -> dict[str, TensorEntry]:
    """The tensors of one file.

    Raises:
        CheckpointError: the file is cut short or no safetensors file, or holds a dtype that is no
            weight's.
    """
    size = file.stat().st_size
    with file.open("rb") as handle:
        head = handle.read(8)
        length = struct.unpack("<Q", head)[0] if len(head) == 8 else size
        if 8 + length > size:
            raise CheckpointError(
                f"{file} is cut short or no safetensors file: it has {size} bytes, and its header "
                "ends beyond them"
            )
        try:
            header = json.loads(handle.read(length))
            entries = dict(_entries(header, file, first_byte=8 + length))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{file} has a damaged header: {error!r}") from error
    _check_places(entries.values(), file, first_byte=8 + length, size=size)
    return entries


def _check_places(
    entries: Iterable[TensorEntry], file: Path, *, first_byte: int, size: int
) -> None:
    """Tensors lie behind one another from the header to the file's end: no two in one place."""
    place = first_byte
    for entry in sorted(entries, key=lambda entry: (entry.start, entry.stop)):
        if entry.stop > size:
            raise CheckpointError(
                f"{file} is cut short: it has {size} bytes, and {entry.name} ends at {entry.stop}"
            )
        if entry.start != place:
            raise CheckpointError(
                f"{file} has a damaged header: {entry.name} begins at {entry.start}, and what is "
                f"before it ends at {place}"
            )
        place = entry.stop
    if place != size:
        raise CheckpointError(f"{file} has {size - place} bytes behind its last tensor")


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        CheckpointError: missing, unreadable or something else.
    """
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file} is not a JSON object")
    return value


def _entries(header: Mapping[str, Any], file: Path, *, first_byte: int):
    for name, record in header.items():
        if name == "__metadata__":
            continue
        start, stop = record["data_offsets"]
        if not all(isinstance(number, int) for number in (start, stop, *record["shape"])):
            raise ValueError(f"{name} has places or sizes that are no whole numbers")
        entry = TensorEntry(
            name,
            record["dtype"],
            tuple(record["shape"]),
            file,
            first_byte + start,
            first_byte + stop,
        )
        if entry.dtype not in DTYPES:
            raise CheckpointError(
                f"{file}: {name} has dtype {entry.dtype}; weights are one of {', '.join(DTYPES)}"
            )
        if stop - start != prod(entry.shape) * DTYPES[entry.dtype].itemsize:
            raise CheckpointError(
                f"{file}: {name} has {stop - start} bytes, which are not {list(entry.shape)} of "
                f"{entry.dtype}"
            )
        yield name, entry
