"""Initial weights that no layout changes: every rank draws its slice of the same model."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories
from megatron.core.models.gpt import GPTModel
from megatron.core.transformer.utils import ensure_metadata_has_dp_cp_group
from torch import Tensor

from megatron_r1.config.model import ModelConfig


@torch.no_grad()
def initialize_weights(model: GPTModel, config: ModelConfig, *, seed: int) -> None:
    """Fill the parameters of this rank's part of the model, in place.

    Matrices are normal with `init_std`, those that write into the residual stream with
    init_std / sqrt(2 x layers), as in GPT-2 and Megatron-LM; norm weights are 1, biases and the
    router's expert bias 0. Each matrix has a random stream of its own, keyed by the seed and its
    global name, and a rank takes its slice of it, so that tensor, pipeline and expert degrees do
    not change the model.
    """
    sharded = chunk_state_dict(model)
    apply_factories(sharded)
    for tensor in nested_values(sharded):
        if isinstance(tensor, ShardedTensor) and tensor.data is not None:
            _fill(tensor, config, seed)


def chunk_state_dict(model: GPTModel) -> dict[str, Any]:
    """A chunk's parameters as shards of the whole model."""
    return model.sharded_state_dict(metadata=ensure_metadata_has_dp_cp_group(None))


def _fill(tensor: ShardedTensor, config: ModelConfig, seed: int) -> None:
    name = tensor.key
    if name.endswith("norm.weight"):
        tensor.data.fill_(1.0)
    elif name.endswith("bias"):
        tensor.data.zero_()
    else:
        std = config.init_std
        if name.endswith(("linear_proj.weight", "linear_fc2.weight")):
            std /= math.sqrt(2 * config.num_layers)
        tensor.data.copy_(_slice_of_normal(tensor, seed) * std)


def _slice_of_normal(tensor: ShardedTensor, seed: int) -> Tensor:
    """This shard of a global matrix of standard normal numbers; float32, on the CPU."""
    stacked = tensor.prepend_axis_num  # leading axes that count layers or experts
    index, offset = tensor.global_offset[:stacked], tensor.global_offset[stacked:]
    key = f"{seed}/{tensor.key}/{index}".encode()
    generator = torch.Generator()
    generator.manual_seed(int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1)
    full = torch.randn(tensor.global_shape[stacked:], generator=generator)
    slices = tuple(
        slice(start, start + length)
        for start, length in zip(offset, tensor.data.shape, strict=True)
    )
    return full[slices]
