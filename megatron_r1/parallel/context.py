"""A packed stream over the context ranks: who holds which token, and how values come together.

Every sequence is cut into 2 x cp chunks of one length, and rank r holds chunks r and
2 x cp - 1 - r: under a causal mask an early chunk attends to little and its mirror image to much,
so all ranks have the same work in attention. A sequence that 2 x cp does not divide is filled up
with padding, which belongs to no sequence. Transformer Engine splits packed sequences in this way.

    T tokens of the whole stream     t tokens and padding that this rank holds; all ranks the same t
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from torch import Tensor

from megatron_r1.parallel.layout import Axis


@dataclass(frozen=True)
class ContextShard:
    """This context rank's part of a stream."""

    cp: Axis
    own_t: Tensor
    """Stream index of each token held, -1 for padding; int64."""
    lengths: tuple[int, ...]
    """Tokens held of each sequence, padding included; the sequences lie end to end."""
    place_T: Tensor = field(repr=False)
    """Where each token of the stream stands among all ranks' tokens end to end; int64."""

    @staticmethod
    def of(
        seq_lengths: Sequence[int], cp: Axis, *, pad_to_multiple: int, device: torch.device
    ) -> ContextShard:
        """Split a stream of these sequences; each rank's part is filled up to the multiple."""
        by_rank = [held_tokens(seq_lengths, cp.size, rank) for rank in range(cp.size)]
        num_padding = -len(by_rank[0]) % pad_to_multiple
        held = torch.nn.functional.pad(torch.stack(by_rank), (0, num_padding), value=-1)
        everyone = held.flatten()
        place_T = torch.empty(sum(seq_lengths), dtype=torch.int64)
        places = torch.arange(everyone.numel())
        place_T[everyone[everyone >= 0]] = places[everyone >= 0]
        return ContextShard(
            cp=cp,
            own_t=held[cp.rank].to(device),
            lengths=tuple(2 * _chunk_length(length, cp.size) for length in seq_lengths),
            place_T=place_T.to(device),
        )

    def take(self, values_T: Tensor, *, fill: int) -> Tensor:
        """values_t of the tokens that this rank holds; `fill` for padding. [T, ...] -> [t, ...]"""
        held_t = values_T[self.own_t.clamp(min=0)]
        is_padding = (self.own_t < 0).view(-1, *[1] * (held_t.dim() - 1))
        return held_t.masked_fill(is_padding, fill)

    def join(self, values_t: Tensor, *, sum_gradients: bool) -> Tensor:
        """What all ranks hold, in the order of the stream: [t, ...] -> [T, ...].

        Args:
            sum_gradients: each rank makes something of its own from the result, and gradients are
                summed; otherwise all make the same of it, and each keeps its own part.
        """
        everyone = gather_from_sequence_parallel_region(
            values_t, tensor_parallel_output_grad=sum_gradients, group=self.cp.group
        )
        return everyone[self.place_T]


def held_tokens(seq_lengths: Sequence[int], num_ranks: int, rank: int) -> Tensor:
    """Stream index of each token that a rank holds, -1 for padding; int64, [t]."""
    held, start = [torch.empty(0, dtype=torch.int64)], 0
    for length in seq_lengths:
        chunk = torch.arange(_chunk_length(length, num_ranks))
        mirrored = 2 * num_ranks - 1 - rank
        index = torch.cat((rank * len(chunk) + chunk, mirrored * len(chunk) + chunk))
        held.append(torch.where(index < length, start + index, -1))
        start += length
    return torch.cat(held)


def _chunk_length(length: int, num_ranks: int) -> int:
    return -(-length // (2 * num_ranks))
