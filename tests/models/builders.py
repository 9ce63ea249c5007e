"""Token streams for tests of the model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_r1.models.policy import Policy
from megatron_r1.models.stream import TokenStream


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
