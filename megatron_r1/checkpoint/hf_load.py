"""Put a Hugging Face model's weights into a policy, each rank its own part of them."""

from __future__ import annotations

from pathlib import Path

import torch
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedTensor, apply_factories

from megatron_r1.checkpoint.hf_weights import HfWeights
from megatron_r1.checkpoint.record import check_same_model, model_identity
from megatron_r1.checkpoint.sharded_keys import place_of
from megatron_r1.config.model import Head
from megatron_r1.models.policy import Policy


@torch.no_grad()
def load_hf_weights(policy: Policy, path: Path) -> int:
    """Fill a policy; rows that pad its vocabulary keep what they hold, and so does a scalar head
    where the directory holds a language model.

    Returns the longest sequence that the model was made for, in tokens.

    Raises:
        CheckpointError: see `HfWeights`, or the directory holds another model than the policy's.
    """
    weights = HfWeights(path)
    record = {"model": model_identity(weights.config), "head": weights.head.value}
    check_same_model(path, record, policy.config, policy.head)
    places = ((place_of(m.megatron, weights.config), m) for m in weights.table)
    mappings = {(place.key, place.index): mapping for place, mapping in places}
    sharded = policy.sharded_state_dict(without_head=weights.head is Head.vocabulary)
    apply_factories(sharded)
    for shard in nested_values(sharded):
        if not isinstance(shard, ShardedTensor) or shard.data is None:
            continue
        stacked = shard.prepend_axis_num
        index, offset = shard.global_offset[:stacked], shard.global_offset[stacked:]
        others = tuple(
            slice(start, start + length)
            for start, length in zip(offset[1:], shard.data.shape[1:], strict=True)
        )
        first, end = offset[0], offset[0] + shard.data.shape[0]
        for row, piece in weights.pieces(mappings[shard.key, index]):
            low, high = max(first, row), min(end, row + piece.shape[0])
            if low < high:
                source = piece[(slice(low - row, high - row), *others)]
                shard.data[low - first : high - first].copy_(source)
    return weights.config.max_positions
