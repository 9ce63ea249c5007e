"""The weights of a Hugging Face directory, as the table of names asks for them.

Opening a directory compares names, shapes and files with the model that its config.json describes,
before a weight is read. FP8 matrices are given out as bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import reduce
from pathlib import Path

import torch
from torch import Tensor

from megatron_r1.checkpoint.hf_coverage import (
    coverage,
    read_hf_config,
    read_hf_head,
    without_absent_mtp,
)
from megatron_r1.checkpoint.safetensors_dir import (
    DTYPES,
    SafetensorsDir,
)
from megatron_r1.errors import CheckpointError
from megatron_r1.weights.fp8_files import SCALE_SUFFIX
from megatron_r1.weights.names import Form, NameMapping, name_table, to_megatron
from r1_kernels.fp8_blocks import dequantize

Piece = tuple[int, Tensor]
"""First row in the Megatron parameter, and rows of it."""


class HfWeights:
    """Weights by mapping, checked."""

    def __init__(self, path: Path) -> None:
        """Open a directory.

        Raises:
            CheckpointError: a file or a tensor is missing, extra, cut short or of another shape.
            ConfigError: an unknown architecture or an unsupported setting.
        """
        self.path = path
        config = read_hf_config(path)
        self.files = SafetensorsDir(path)
        self.config = without_absent_mtp(config, self.files.entries)
        self.head = read_hf_head(path)
        self.table = name_table(self.config, self.head)
        found = coverage(self.config, self.table, self.files.entries)
        if not found.complete:
            raise CheckpointError(
                f"{path}: the weights are not those of the model that {path / 'config.json'} "
                f"describes. {found.describe()}"
            )

    @property
    def scale_names(self) -> list[str]:
        """Scales of FP8 matrices, in the order of the table."""
        names = (name + SCALE_SUFFIX for mapping in self.table for name in mapping.hf)
        return [name for name in names if name in self.files.entries]

    def dtype(self, mapping: NameMapping) -> torch.dtype:
        """In which `pieces` come when they are not converted."""
        dtypes = (DTYPES[self.files.entries[name].dtype] for name in mapping.hf)
        return reduce(torch.promote_types, map(_readable, dtypes))

    def pieces(self, mapping: NameMapping) -> list[Piece]:
        """The Megatron parameter in consecutive pieces, mapped from the files where they can be.

        Raises:
            CheckpointError: a weight is NaN or infinite, or a copy differs from its original.
        """
        tensors = [self._tensor(name) for name in mapping.hf]
        for name in self._copies(mapping):
            if not torch.equal(self._tensor(name), tensors[0]):
                raise CheckpointError(
                    f"{self.files.entries[name].file}: {name} differs from {mapping.hf[0]}, and "
                    "the model has one weight for both"
                )
        if mapping.form is not Form.rows:
            return [(0, to_megatron(mapping, tensors, self.config))]
        starts = [sum(shape[0] for shape in mapping.shapes[:i]) for i in range(len(tensors))]
        return list(zip(starts, tensors, strict=True))

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """All of the model's tensors by their own names, FP8 ones as bfloat16."""
        return ((name, self._tensor(name)) for mapping in self.table for name in mapping.hf)

    def _tensor(self, name: str) -> Tensor:
        entry, tensor = self.files.entries[name], self.files.tensor(name)
        if tensor.dtype is torch.float8_e4m3fn:
            tensor = dequantize(tensor, self.files.tensor(name + SCALE_SUFFIX), torch.bfloat16)
        check_finite(tensor, name, entry.file)
        return tensor

    def _copies(self, mapping: NameMapping) -> Iterator[str]:
        names = mapping.copies
        if self.config.tie_embeddings and mapping.hf == ("model.embed_tokens.weight",):
            names += ("lm_head.weight",)
        return (name for name in names if name in self.files.entries)


def check_finite(tensor: Tensor, name: str, file: Path) -> None:
    """Refuse a tensor with NaN or infinity; one pass without a copy."""
    if tensor.numel():
        smallest, largest = torch.aminmax(tensor)
        if not (smallest.isfinite() and largest.isfinite()):
            bad = int((~tensor.isfinite()).sum())
            raise CheckpointError(
                f"{file}: {bad} of {tensor.numel()} numbers of {name} are NaN or infinite"
            )


def cast_finite(tensor: Tensor, dtype: torch.dtype, name: str, file: Path) -> Tensor:
    """In another type; refuses what does not fit into it.

    Args:
        tensor: finite numbers.
    """
    if tensor.dtype is dtype:
        return tensor
    cast = tensor.to(dtype)
    if cast.numel() and not torch.stack(torch.aminmax(cast)).isfinite().all():
        largest = float(tensor.abs().max())
        raise CheckpointError(
            f"{file}: {name} holds {largest:.4g}, which {str(dtype).removeprefix('torch.')} does "
            "not. Choose another --dtype"
        )
    return cast


def _readable(dtype: torch.dtype) -> torch.dtype:
    return torch.bfloat16 if dtype is torch.float8_e4m3fn else dtype
