"""A Megatron distributed checkpoint (format torch_dist), one tensor at a time, in one process.

    .metadata       shape and dtype of every tensor, its chunks, and each chunk's place in a file
    __0_0.distcp    chunks one after another, each as torch.save writes it
    common.pt, metadata.json      what Megatron-Core adds

Training reads and writes these through Megatron-Core, all ranks together, with a model in place.
Conversion has no model: it names a tensor, or the part of it that belongs to one layer or expert,
and holds no more than that in memory. Megatron-Core is not needed.

A **part** of a tensor is what remains when its first indices are chosen: [17] of [E, F, D] is one
expert's [F, D]. Training writes a part as one chunk per rank that holds some of it.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, FileSystemWriter, Metadata
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.storage import WriteResult

from megatron_r1.checkpoint.safetensors_dir import map_bytes
from megatron_r1.checkpoint.whole_file import whole_file
from megatron_r1.errors import CheckpointError

Index = tuple[int, ...]


@dataclass(frozen=True)
class ShardedSpec:
    """A tensor of the whole model."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a tensor and where its bytes are: as torch.save's archive, in a file."""

    key: str
    offsets: Index
    sizes: Index
    file: str
    start: int
    length: int


class ShardedReader:
    """Tensors of a checkpoint by key."""

    def __init__(self, path: Path) -> None:
        """Read the metadata.

        Raises:
            CheckpointError: there is none, it is damaged, or a file is missing or cut short.
        """
        self.path = path
        try:
            metadata = FileSystemReader(path).read_metadata()
            places = {(i.fqn, i.offset): info for i, info in metadata.storage_data.items()}
            self.specs = {
                key: ShardedSpec(value.properties.dtype, tuple(value.size))
                for key, value in metadata.state_dict_metadata.items()
                if isinstance(value, TensorStorageMetadata)
            }
            self.chunks = {
                key: [
                    _chunk(key, chunk, places[key, chunk.offsets])
                    for chunk in metadata.state_dict_metadata[key].chunks
                ]
                for key in self.specs
            }
        except Exception as error:  # a damaged pickle raises anything
            raise CheckpointError(f"{path / '.metadata'} cannot be read: {error!r}") from error
        self._parts: dict[tuple[str, int], dict[Index, list[Chunk]]] = {}
        self._check_sizes()

    def part(self, key: str, index: Index = (), rows: range | None = None) -> Tensor:
        """A part of a tensor, or some of its rows (a range along its first dim).

        A map of the file where one chunk is just that, otherwise a copy.

        Raises:
            CheckpointError: chunks are missing or cannot be read.
        """
        stacked = len(index)
        shape = self.specs[key].shape[stacked:]
        rows = range(shape[0]) if rows is None else rows
        whole_shape = (len(rows), *shape[1:])
        pieces = []
        for chunk in self._chunks_of(key, stacked).get(index, []):
            offsets, sizes = chunk.offsets[stacked:], chunk.sizes[stacked:]
            first = max(offsets[0], rows.start)
            last = min(offsets[0] + sizes[0], rows.stop)
            if first < last:
                piece = self._read(chunk).view(sizes)[first - offsets[0] : last - offsets[0]]
                if piece.shape == whole_shape:
                    return piece
                pieces.append(((first - rows.start, *offsets[1:]), piece))
        if sum(piece.numel() for _, piece in pieces) != prod(whole_shape):
            raise CheckpointError(
                f"{self.path} lacks pieces of {key}{list(index) or ''}: the {len(pieces)} that are "
                f"there do not make up {list(whole_shape)}"
            )
        whole = torch.empty(whole_shape, dtype=self.specs[key].dtype)
        for offsets, piece in pieces:
            ends = (offset + size for offset, size in zip(offsets, piece.shape, strict=True))
            whole[tuple(slice(*span) for span in zip(offsets, ends, strict=True))] = piece
        return whole

    def file(self, key: str, index: Index = ()) -> Path:
        """A file with some of a part, for messages."""
        chunks = self._chunks_of(key, len(index)).get(index)
        return self.path / chunks[0].file if chunks else self.path

    def _chunks_of(self, key: str, num_indices: int) -> dict[Index, list[Chunk]]:
        """Chunks by their first indices; each lies within one layer or expert."""
        by_index = self._parts.get((key, num_indices))
        if by_index is None:
            by_index = defaultdict(list)
            for chunk in self.chunks[key]:
                assert set(chunk.sizes[:num_indices]) <= {1}, f"{chunk} spans several parts"
                by_index[chunk.offsets[:num_indices]].append(chunk)
            self._parts[key, num_indices] = by_index
        return by_index

    def _read(self, chunk: Chunk) -> Tensor:
        """A map of the chunk's numbers, in its saved shape."""
        file = self.path / chunk.file
        try:
            archive = _FilePart(file.open("rb"), chunk.start, chunk.length)
            with archive.file:
                layout = torch.load(archive, map_location="meta", weights_only=True)
                offset = _data_offset(archive)
        except Exception as error:  # a damaged archive raises anything
            raise CheckpointError(f"{file} is damaged: {chunk.key} cannot be read") from error
        num_bytes = layout.untyped_storage().nbytes()
        storage = map_bytes(file, chunk.start + offset, num_bytes).view(layout.dtype)
        return storage.as_strided(layout.shape, layout.stride(), layout.storage_offset())

    def _check_sizes(self) -> None:
        ends: dict[str, tuple[int, str]] = {}
        for chunk in (chunk for chunks in self.chunks.values() for chunk in chunks):
            ends[chunk.file] = max(
                ends.get(chunk.file, (0, "")), (chunk.start + chunk.length, chunk.key)
            )
        for name, (end, key) in ends.items():
            file = self.path / name
            if not file.is_file():
                raise CheckpointError(f"{file} is missing; it holds {key}")
            if file.stat().st_size < end:
                raise CheckpointError(
                    f"{file} is cut short: it has {file.stat().st_size} bytes, and {key} ends at "
                    f"{end}"
                )


@dataclass
class ChunkFile:
    """One data file while it is written."""

    name: str
    handle: IO[bytes]
    chunks: list[Chunk] = field(default_factory=list)

    def write(self, key: str, offsets: Index, sizes: Index, tensor: Tensor) -> None:
        """A chunk; `tensor` has its numbers, whatever its shape."""
        if tensor.untyped_storage().nbytes() != tensor.nbytes or not tensor.is_contiguous():
            tensor = tensor.clone(memory_format=torch.contiguous_format)  # all of it is written
        start = self.handle.tell()
        try:
            torch.save(tensor.view(sizes), self.handle)
        except RuntimeError as error:
            # torch's writer fails once more on its way out, and hides what the disk said.
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
        length = self.handle.tell() - start
        self.chunks.append(Chunk(key, offsets, sizes, self.name, start, length))


@contextmanager
def chunk_file(path: Path) -> Iterator[ChunkFile]:
    """A data file that gets its name when it is whole and on the disk, its list of chunks first."""
    checksums = torch.serialization.get_crc32_options()
    # Computing checksums takes five times as long as writing, and torch.load does without.
    torch.serialization.set_crc32_options(False)
    try:
        with whole_file(path) as handle:
            file = ChunkFile(path.name, handle)
            yield file
            _chunk_list(path).write_text(json.dumps([vars(chunk) for chunk in file.chunks]))
    finally:
        torch.serialization.set_crc32_options(checksums)


def finish_checkpoint(
    directory: Path, specs: Mapping[str, ShardedSpec], files: Sequence[str]
) -> None:
    """Write the metadata of a directory whose data files are whole; a second call does nothing."""
    if not (directory / ".metadata").is_file():
        torch.save({}, directory / "common.pt")
        backends = {"sharded_backend": "torch_dist", "common_backend": "torch"}
        versions = {f"{name}_version": 1 for name in backends}
        (directory / "metadata.json").write_text(json.dumps(backends | versions))
        _write_metadata(directory, specs, files)
    for name in files:
        _chunk_list(directory / name).unlink(missing_ok=True)


def _write_metadata(
    directory: Path, specs: Mapping[str, ShardedSpec], files: Sequence[str]
) -> None:
    chunks: dict[str, list[Chunk]] = {key: [] for key in specs}
    for name in files:
        for values in json.loads(_chunk_list(directory / name).read_text()):
            chunk = Chunk(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})
            chunks[chunk.key].append(chunk)
    for key, spec in specs.items():
        written = sum(prod(chunk.sizes) for chunk in chunks[key])
        assert written == prod(spec.shape), f"{key}: {written} numbers written of {spec.shape}"
    results = [
        WriteResult(
            index=MetadataIndex(chunk.key, chunk.offsets),
            size_in_bytes=chunk.length,
            storage_data=_StorageInfo(chunk.file, chunk.start, chunk.length),
        )
        for of_key in chunks.values()
        for chunk in of_key
    ]
    metadata = Metadata({key: _tensor_metadata(specs[key], chunks[key]) for key in specs})
    FileSystemWriter(directory).finish(metadata, [results])


def _chunk_list(path: Path) -> Path:
    return path.with_name(f".{path.name}.json")


def _chunk(key: str, chunk: ChunkStorageMetadata, info: _StorageInfo) -> Chunk:
    return Chunk(
        key, tuple(chunk.offsets), tuple(chunk.sizes), info.relative_path, info.offset, info.length
    )


def _tensor_metadata(spec: ShardedSpec, chunks: Sequence[Chunk]) -> TensorStorageMetadata:
    return TensorStorageMetadata(
        properties=TensorProperties(dtype=spec.dtype),
        size=torch.Size(spec.shape),
        chunks=[
            ChunkStorageMetadata(offsets=torch.Size(c.offsets), sizes=torch.Size(c.sizes))
            for c in chunks
        ],
    )


def _data_offset(archive: IO[bytes]) -> int:
    """Where the numbers begin in what torch.save wrote: an uncompressed zip archive."""
    (info,) = (i for i in zipfile.ZipFile(archive).infolist() if i.filename.endswith("/data/0"))
    archive.seek(info.header_offset + 26)  # a local header: 30 bytes, two lengths at its end
    name_length, extra_length = (int.from_bytes(archive.read(2), "little") for _ in range(2))
    return info.header_offset + 30 + name_length + extra_length


class _FilePart:
    """A stretch of a file as a file."""

    def __init__(self, file: IO[bytes], start: int, length: int) -> None:
        self.file, self._start, self._length = file, start, length
        self.seek(0)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.tell(), os.SEEK_END: self._length}[whence]
        return self.file.seek(self._start + base + offset) - self._start

    def tell(self) -> int:
        return self.file.tell() - self._start

    def read(self, size: int = -1) -> bytes:
        left = self._length - self.tell()
        return self.file.read(left if size < 0 else min(size, left))

    def readline(self, *_: Any) -> bytes:
        raise OSError("not a text file")

    def readinto(self, buffer: Any) -> int:
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def seekable(self) -> bool:
        return True
