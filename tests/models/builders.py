"""Token streams for tests of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from torch import Tensor

from megatron_r1.config.model import ModelConfig
from megatron_r1.models.policy import Policy
from megatron_r1.models.stream import TokenStream
from megatron_r1.types import TrainBatch


def stream_of(
    lengths: Sequence[int],
    *,
    num_padding: int = 0,
    balance_scale: float = 0.0,
    device: torch.device | str = "cpu",
) -> TokenStream:
    """Sequences of these lengths end to end; the last `num_padding` tokens, if any, are padding."""
    positions = [torch.arange(length, device=device) for length in lengths]
    return TokenStream(
        positions_T=torch.cat(positions),
        seq_lengths=tuple(lengths),
        num_padding=num_padding,
        balance_scale=balance_scale,
    )


def random_tokens(num_tokens: int, *, seed: int = 0) -> Tensor:
    """tokens_T out of the tiny models' 512."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 512, (num_tokens,), generator=generator)


@torch.no_grad()
def logits_of(policy: Policy, tokens_T: Tensor, lengths: Sequence[int]) -> Tensor:
    """logits_TV of one packed stream, on the CPU."""
    device = policy.host.device
    return policy.forward(tokens_T.to(device), stream_of(lengths, device=device)).cpu()


def checkpoint_keys(policy: Policy) -> set[str]:
    """What the tensors are called in a checkpoint, where experts are stacked."""
    chunks = policy.sharded_state_dict().values()
    return {shard.key for chunk in chunks for shard in chunk.values() if hasattr(shard, "key")}


def check_checkpoints_are_exchanged(first: Policy, second: Policy, directory: Path) -> None:
    """What either saves the other loads, weight by weight; `second` holds `first`'s in the end."""
    with torch.no_grad():  # norms of 1 would hide that they are not loaded
        for _, weight in first.named_parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    for source, target in ((first, second), (second, first)):
        path = directory / source.parts.name
        path.mkdir()
        dist_checkpointing.save(source.sharded_state_dict(), str(path))
        before = {name: weight.clone() for name, weight in source.named_parameters()}
        with torch.no_grad():
            for _, weight in target.named_parameters():
                weight.zero_()
        target.load_state_dict(dist_checkpointing.load(target.sharded_state_dict(), str(path)))
        for name, weight in target.named_parameters():
            assert torch.equal(weight, before[name]), name


def with_drawn_experts(batch: TrainBatch, config: ModelConfig) -> TrainBatch:
    """Each token's experts are drawn, in the place of the router's choices: roundings before a
    router change none. A dense model's batch as it is."""
    if not hasattr(config, "num_experts"):
        return batch
    draw = torch.Generator().manual_seed(1)
    rows = []
    for row in batch.rows:
        shape = (row.num_tokens, config.num_layers, config.num_experts)
        drawn = torch.rand(shape, generator=draw).topk(config.experts_per_token).indices
        rows.append(dataclasses.replace(row, routed_experts_LMK=drawn.to(torch.int16)))
    return dataclasses.replace(batch, rows=tuple(rows))
