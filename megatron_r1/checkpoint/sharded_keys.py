"""Under which key, and where in it, a distributed checkpoint holds a parameter.

Megatron-Core stacks the experts of a layer, and the layers of a model whose layers are all alike:
decoder.layers.mlp.linear_fc1.weight is [layers, 2F, D] of a dense model, and
decoder.layers.3.mlp.experts.experts.linear_fc1.weight is [E, 2F, D] of a mixture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

from megatron_r1.checkpoint.sharded_tensors import Index, ShardedSpec
from megatron_r1.config.model import MixtureConfig, ModelConfig
from megatron_r1.weights.names import NameMapping

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


@dataclass(frozen=True)
class Place:
    """A part of a stacked tensor."""

    key: str
    index: Index = ()
    """Layer and expert, those of them that are stacked."""
    counts: Index = ()
    """How many of each there are."""


def place_of(megatron_name: str, config: ModelConfig) -> Place:
    """Where the parameter of this global name is."""
    key, index, counts = megatron_name, (), ()
    layer, expert = _LAYER.match(key), _EXPERT.search(key)
    if layer and not isinstance(config, MixtureConfig):
        key = _LAYER.sub("decoder.layers.", key)
        index, counts = (int(layer[1]),), (config.num_layers,)
    if expert:
        assert isinstance(config, MixtureConfig), megatron_name
        key = _EXPERT.sub(".experts.", key)
        index, counts = (*index, int(expert[1])), (*counts, config.num_experts)
    return Place(key, index, counts)


def sharded_specs(
    config: ModelConfig,
    table: Iterable[NameMapping],
    dtype_of: Callable[[NameMapping], torch.dtype],
) -> dict[str, ShardedSpec]:
    """Every tensor of a checkpoint. Stacked parts of several dtypes get one that holds them all."""
    specs: dict[str, ShardedSpec] = {}
    for mapping in table:
        place, dtype = place_of(mapping.megatron, config), dtype_of(mapping)
        if place.key in specs:
            dtype = torch.promote_types(dtype, specs[place.key].dtype)
        specs[place.key] = ShardedSpec(dtype, (*place.counts, *mapping.megatron_shape))
    return specs
