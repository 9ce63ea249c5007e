"""What one forward pass is given: sequences packed end to end into one stream of T tokens.

Training, prefill and decoding use the same layers on the same stream of shape [T, 1, D] (Megatron's
[sequence, batch, width] with a batch of one); they differ in what attention may look at:

    training   each token sees the earlier tokens of its own sequence
    prefill    the same, and keys and values are stored in the cache rows of the sequences
    decoding   every token is the newest of a sequence of its own, and sees that sequence's cache
    row
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_r1.models.kv_cache import KvCache


@dataclass(eq=False)
class TokenStream(PackedSeqParams):
    """Positions, sequence boundaries, rotary angles and cache of one stream.

    It travels as Megatron-Core's `packed_seq_params` through model, block and layer.
    """

    positions_T: Tensor | None = None
    seq_lengths: tuple[int, ...] = ()
    """They add up to T; decoding: T ones."""
    num_padding: int = 0
    """Tokens at the end of the stream that stand for nothing."""
    rope_cos_TK: Tensor | None = None
    rope_sin_TK: Tensor | None = None
    balance_scale: float = 0.0
    """1 / sequences of the whole step: share of one sequence in the balance loss."""
    cache: KvCache | None = None
    cache_rows_T: Tensor | None = None
    """Cache row of each token; decoding: 0, 1, ..., T - 1."""
    decoding: bool = False
    max_context: int = 0
    """Decoding: the longest context in the stream, newest token included."""

    @cached_property
    def sequence_ids_T(self) -> Tensor:
        """Which sequence each token belongs to; int64."""
        lengths = torch.tensor(self.seq_lengths, device=self.positions_T.device)
        return torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)

    @cached_property
    def is_token_T(self) -> Tensor:
        """True for tokens, False for padding."""
        num_tokens = self.positions_T.numel()
        index_T = torch.arange(num_tokens, device=self.positions_T.device)
        return index_T < num_tokens - self.num_padding

    @cached_property
    def length_classes(self) -> list[LengthClass]:
        """Sequences of like length side by side, for attention on padded rectangles."""
        return group_by_length(self.seq_lengths, device=self.positions_T.device)

    @cached_property
    def context_mask_TC(self) -> Tensor:
        """Decoding: which of the first `max_context` cache columns a token sees; bool."""
        columns_C = torch.arange(self.max_context, device=self.positions_T.device)
        return columns_C[None, :] <= self.positions_T[:, None]


@dataclass(frozen=True)
class LengthClass:
    """Some sequences of a stream as a rectangle S x L, padded on the right."""

    gather_SL: Tensor
    """Stream index of each cell; padding cells repeat the sequence's last token."""
    valid_SL: Tensor = field(repr=False)
    """bool; False on padding cells."""


def group_by_length(
    seq_lengths: Sequence[int], *, device: torch.device, waste_frac: float = 0.25
) -> list[LengthClass]:
    """Put sequences into rectangles of which at most `waste_frac` is padding."""
    starts = [0]
    for length in seq_lengths:
        starts.append(starts[-1] + length)
    classes: list[list[int]] = []
    filled = 0
    for seq in sorted(range(len(seq_lengths)), key=lambda s: (-seq_lengths[s], s)):
        length = seq_lengths[seq]
        if length == 0:
            continue
        if classes:
            area = seq_lengths[classes[-1][0]] * (len(classes[-1]) + 1)
            if filled + length >= (1 - waste_frac) * area:
                classes[-1].append(seq)
                filled += length
                continue
        classes.append([seq])
        filled = length
    return [_rectangle(members, seq_lengths, starts, device) for members in classes]


def _rectangle(
    members: Sequence[int], seq_lengths: Sequence[int], starts: Sequence[int], device: torch.device
) -> LengthClass:
    lengths_S1 = torch.tensor([seq_lengths[s] for s in members], device=device)[:, None]
    starts_S1 = torch.tensor([starts[s] for s in members], device=device)[:, None]
    columns_1L = torch.arange(int(lengths_S1.max()), device=device)[None, :]
    return LengthClass(
        gather_SL=starts_S1 + torch.minimum(columns_1L, lengths_S1 - 1),
        valid_SL=columns_1L < lengths_S1,
    )
