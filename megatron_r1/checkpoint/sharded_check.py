"""Whether the tensors of a checkpoint are those of the model that its state.json describes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import torch

from megatron_r1.checkpoint.sharded_keys import sharded_specs
from megatron_r1.checkpoint.sharded_tensors import ShardedReader
from megatron_r1.config.model import ModelConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.weights.names import Form, NameMapping

_OF_OPTIMIZER = re.compile(r"(chained_\d+\.)?optimizer\.")
"""Experts have an optimizer of their own, chained behind the others'."""


def is_of_optimizer(key: str) -> bool:
    """Whether a tensor is Adam's rather than a weight."""
    return _OF_OPTIMIZER.match(key) is not None


def check_tensors(
    reader: ShardedReader, config: ModelConfig, table: Iterable[NameMapping], state_file: Path
) -> None:
    """Compare keys and shapes; optimizer state is left alone.

    Raises:
        CheckpointError: a tensor is missing, too many or of another shape; names the first.
    """
    table = list(table)
    expected = sharded_specs(config, table, lambda mapping: mapping.dtype or torch.float32)
    padded = {mapping.megatron for mapping in table if mapping.form is Form.vocab}
    for key, spec in expected.items():
        found = reader.specs.get(key)
        if found is None:
            raise CheckpointError(
                f"{reader.path} lacks {key}, which the model that {state_file} describes has"
            )
        is_padded = key in padded and found.shape[:1] >= spec.shape[:1]
        first = 1 if is_padded else 0
        if len(found.shape) != len(spec.shape) or found.shape[first:] != spec.shape[first:]:
            raise CheckpointError(
                f"{reader.path}: {key} has shape {list(found.shape)}, and the model "
                f"that {state_file} describes makes it {list(spec.shape)}"
            )
    for key in reader.specs:
        if key not in expected and not is_of_optimizer(key):
            raise CheckpointError(
                f"{reader.path} holds {key}, which the model that {state_file} describes has not"
            )
