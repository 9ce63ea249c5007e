"""What a checkpoint or a Hugging Face model holds, in words; no weight is read."""

from __future__ import annotations

import dataclasses
import re
from collections import defaultdict
from collections.abc import Iterable
from math import prod
from pathlib import Path

from megatron_r1.checkpoint.conversion import MEGABYTE
from megatron_r1.checkpoint.hf_coverage import absent_mtp_note, is_hf_directory
from megatron_r1.checkpoint.hf_weights import HfWeights
from megatron_r1.checkpoint.record import (
    CRITIC,
    POLICY,
    REFERENCE,
    read_state,
    resolve_checkpoint,
    saved_config,
    saved_head,
)
from megatron_r1.checkpoint.safetensors_dir import DTYPES
from megatron_r1.checkpoint.sharded_check import check_tensors, is_of_optimizer
from megatron_r1.checkpoint.sharded_tensors import ShardedReader
from megatron_r1.config.model import Head, ModelConfig
from megatron_r1.errors import ConfigError
from megatron_r1.models.size import count_parameters
from megatron_r1.telemetry.table import render_table
from megatron_r1.weights.names import name_table

Tensor = tuple[str, str, tuple[int, ...], int]
"""Name, dtype, shape, bytes."""


def describe(path: Path, pattern: str | None = None) -> str:
    """Describe a run's latest checkpoint, a checkpoint, or a Hugging Face model.

    Args:
        pattern: regular expression; lists the tensors whose names have a match, one by one.
    Raises:
        CheckpointError: neither is there, or it is damaged.
    """
    try:
        re.compile(pattern or "")
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regular expression: {error}") from error
    if is_hf_directory(path):
        return "\n".join(_describe_hf(path, pattern))
    return "\n".join(_describe_checkpoint(resolve_checkpoint(path), pattern))


def _describe_hf(path: Path, pattern: str | None) -> Iterable[str]:
    weights = HfWeights(path)
    files = weights.files
    yield f"{path}: Hugging Face model, {_model(weights.config, weights.head)}"
    note = absent_mtp_note(path, weights.config)
    if note:
        yield note
    tensors = [
        (entry.name, str(DTYPES[entry.dtype]), entry.shape, entry.stop - entry.start)
        for entry in files.entries.values()
    ]
    yield from _tables("weights", tensors, pattern)


def _describe_checkpoint(path: Path, pattern: str | None) -> Iterable[str]:
    record = read_state(path)
    config, head = saved_config(path, record), saved_head(record)
    yield f"{path}: checkpoint, {_model(config, head)}"
    loop = ", ".join(f"{name} {value}" for name, value in record["loop"].items())
    yield f"{loop}; saved by {record['layout']}"
    for name in (POLICY, REFERENCE, CRITIC):
        if (path / name).is_dir():
            reader = ShardedReader(path / name)
            table = name_table(*_model_of(name, config, head))
            check_tensors(reader, config, table, path / "state.json")
            tensors = [
                (key, str(spec.dtype), spec.shape, prod(spec.shape) * spec.dtype.itemsize)
                for key, spec in reader.specs.items()
            ]
            optimizer = [tensor for tensor in tensors if is_of_optimizer(tensor[0])]
            weights = [tensor for tensor in tensors if not is_of_optimizer(tensor[0])]
            yield from _tables(f"{name}: weights", weights, pattern)
            if optimizer:
                yield from _tables(f"{name}: optimizer state", optimizer, pattern)
            elif name == POLICY:
                yield "no optimizer state: a run can start from it, and none can resume"
    for file, size in record["files"].items():
        if not file.startswith((POLICY, REFERENCE, CRITIC)):
            yield f"{file}: {size:,} bytes"


def _model_of(name: str, config: ModelConfig, head: Head) -> tuple[ModelConfig, Head]:
    """A critic is the policy's body, without its prediction layers, under a scalar head."""
    if name != CRITIC:
        return config, head
    return dataclasses.replace(config, num_mtp_layers=0), Head.scalar


def _model(config: ModelConfig, head: Head) -> str:
    count = count_parameters(config, head)
    scalar = ", scalar head" if head is Head.scalar else ""
    return (
        f"{count.total:,} parameters, {config.num_layers} layers of {config.hidden_size}, "
        f"vocabulary {config.vocab_size:,}{scalar}"
    )


def _tables(title: str, tensors: list[Tensor], pattern: str | None) -> Iterable[str]:
    total = sum(num_bytes for *_, num_bytes in tensors)
    yield f"\n{title}: {len(tensors)} tensors, {total / MEGABYTE:,.1f} MB"
    if pattern is not None:
        rows = [
            [name, dtype.removeprefix("torch."), str(list(shape))]
            for name, dtype, shape, _ in tensors
            if re.search(pattern, name)
        ]
        yield render_table(["name", "dtype", "shape"], rows)
        return
    kinds: dict[tuple[str, str, str], int] = defaultdict(int)
    for name, dtype, shape, _ in tensors:
        starred = re.sub(r"(?<=\.)\d+(?=\.)", "*", name)
        kinds[starred, dtype.removeprefix("torch."), str(list(shape))] += 1
    yield render_table(
        ["tensors", "name", "dtype", "shape"],
        [[str(count), *kind] for kind, count in kinds.items()],
    )
