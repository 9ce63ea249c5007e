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
from itertools import accumulate

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from torch import Tensor

from megatron_r1.models.kv_cache import KvCache
from megatron_r1.parallel.context import ContextShard


@dataclass(eq=False)
class TokenStream(PackedSeqParams):
    """Positions, sequence boundaries, rotary angles and cache of one stream.

    It travels as Megatron-Core's `packed_seq_params` through model, block and layer. Under context
    parallelism T counts the tokens that this rank holds, and lengths are those of the whole stream.
    """

    positions_T: Tensor | None = None
    seq_lengths: tuple[int, ...] = ()
    """They add up to the length of the whole stream; decoding: T ones."""
    num_padding: int = 0
    """Tokens at the end of the whole stream that stand for nothing: its last sequence."""
    context: ContextShard | None = None
    """Which tokens this context rank holds; None: all of them."""
    rope_cos_TK: Tensor | None = None
    rope_sin_TK: Tensor | None = None
    tokens_ahead_KT: Tensor | None = None
    """Row k - 1: the token k places further on in the sequence, 0 behind its end; int64. None: the
    prediction layers do not run."""
    logits_ahead: list[Tensor] = field(default_factory=list)
    """Filled by the model's last chunk: [T, v] of each prediction layer, for token t + k + 1."""
    wants_hidden: bool = False
    """The model's last chunk gives hidden states, [T, D], in place of logits, `logits_ahead`
    included, and `head_weight_vD` with them."""
    head_weight_vD: Tensor | None = None
    """This tensor rank's rows of the head."""
    float32_head: bool = False
    """Logits are computed in float32, whatever the model's dtype."""
    routed_experts_TMK: Tensor | None = None
    """Experts that each token goes to in each layer of the model, int16; -1: the router decides.
    None: it decides for all tokens."""
    balance_scale: float = 0.0
    """1 / sequences of the whole step: share of one sequence in the balance loss."""
    cache: KvCache | None = None
    cache_rows_T: Tensor | None = None
    """Cache row of each token; decoding: 0, 1, ..., T - 1."""
    decoding: bool = False
    max_context: int = 0
    """Decoding: the longest context in the stream, newest token included."""

    @property
    def num_sequences(self) -> int:
        """Sequences of the whole stream, padding not counted."""
        return len(self.seq_lengths) - (self.num_padding > 0)

    @cached_property
    def sequence_ids_T(self) -> Tensor:
        """Which sequence each token belongs to, `num_sequences` for padding; int64."""
        lengths = torch.tensor(self.seq_lengths, device=self.positions_T.device)
        ids = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        return self.take(ids, fill=self.num_sequences)

    @cached_property
    def is_token_T(self) -> Tensor:
        """True for tokens, False for padding."""
        return self.sequence_ids_T < self.num_sequences

    @cached_property
    def length_classes(self) -> list[LengthClass]:
        """Sequences of like length side by side, for attention on padded rectangles."""
        device = self.positions_T.device
        groups = group_by_length(self.seq_lengths)
        if self.context is None:
            whole = [Rectangle.of(members, self.seq_lengths, device) for members in groups]
            return [LengthClass(queries=each, keys=each, mask_SQL=None) for each in whole]
        classes = []
        for members in groups:
            queries = Rectangle.of(members, self.context.lengths, device)
            keys = Rectangle.of(members, self.seq_lengths, device)
            columns_L = torch.arange(keys.index_SL.shape[1], device=device)
            mask_SQL = columns_L <= self.positions_T[queries.index_SL][..., None]
            classes.append(LengthClass(queries=queries, keys=keys, mask_SQL=mask_SQL))
        return classes

    @cached_property
    def cells_T(self) -> Tensor:
        """Which query cell of the length classes, laid end to end, holds each token; int64."""
        queries = [each.queries for each in self.length_classes]
        valid = torch.cat([rectangle.valid_SL.flatten() for rectangle in queries])
        tokens = torch.cat([rectangle.index_SL.flatten() for rectangle in queries])
        return valid.nonzero().squeeze(1)[tokens[valid].argsort()]

    @cached_property
    def packed(self) -> PackedSeqParams:
        """Where sequences begin, as Transformer Engine's attention takes it: in the whole stream,
        each filled up to what its context ranks hold."""
        if self.context is None:
            lengths = [length for length in self.seq_lengths if length]
        else:
            lengths = [self.context.cp.size * length for length in self.context.lengths if length]
        device = self.positions_T.device
        starts = torch.tensor([0, *accumulate(lengths)], dtype=torch.int32, device=device)
        if self.context is None:
            # Context ranks that sample have a stream each, and must not pass keys round.
            ranks = dict(local_cp_size=1)
        else:
            ranks = dict(
                cp_group=self.context.cp.group,
                cu_seqlens_q_padded=starts,
                cu_seqlens_kv_padded=starts,
            )
        longest = max(2, *lengths)  # cuDNN has no latent attention for one token
        return PackedSeqParams(
            qkv_format="thd",
            cu_seqlens_q=starts,
            cu_seqlens_kv=starts,
            max_seqlen_q=longest,
            max_seqlen_kv=longest,
            **ranks,
        )

    def take(self, values: Tensor, *, fill: int) -> Tensor:
        """values_T of the tokens that this rank holds, from those of the whole stream."""
        return values if self.context is None else self.context.take(values, fill=fill)

    def join(self, values_T: Tensor) -> Tensor:
        """Values of the whole stream, for every context rank to make the same of."""
        if self.context is None:
            return values_T
        return self.context.join(values_T, sum_gradients=False)

    @cached_property
    def context_mask_TC(self) -> Tensor:
        """Decoding: which of the first `max_context` cache columns a token sees; bool."""
        columns_C = torch.arange(self.max_context, device=self.positions_T.device)
        return columns_C[None, :] <= self.positions_T[:, None]


@dataclass(frozen=True)
class Rectangle:
    """Some sequences of a stream side by side, S x L, padded on the right."""

    index_SL: Tensor
    """Where each cell's token is; padding cells repeat the sequence's last token."""
    valid_SL: Tensor = field(repr=False)
    """bool; False on padding cells."""

    @staticmethod
    def of(members: Sequence[int], seq_lengths: Sequence[int], device: torch.device) -> Rectangle:
        """These sequences out of all that lie end to end."""
        starts = list(accumulate(seq_lengths, initial=0))
        lengths_S1 = torch.tensor([seq_lengths[s] for s in members], device=device)[:, None]
        starts_S1 = torch.tensor([starts[s] for s in members], device=device)[:, None]
        columns_1L = torch.arange(int(lengths_S1.max()), device=device)[None, :]
        return Rectangle(
            index_SL=starts_S1 + torch.minimum(columns_1L, lengths_S1 - 1),
            valid_SL=columns_1L < lengths_S1,
        )


@dataclass(frozen=True)
class LengthClass:
    """Sequences of like length: the tokens of this rank, and all that they may look at."""

    queries: Rectangle
    keys: Rectangle
    """In the whole stream."""
    mask_SQL: Tensor | None
    """Which keys a query sees; None: queries are the keys, and it is the causal mask."""


def group_by_length(seq_lengths: Sequence[int], *, waste_frac: float = 0.25) -> list[list[int]]:
    """Put sequences into rectangles of which at most `waste_frac` is padding."""
    groups: list[list[int]] = []
    filled = 0
    for seq in sorted(range(len(seq_lengths)), key=lambda s: (-seq_lengths[s], s)):
        length = seq_lengths[seq]
        if length == 0:
            continue
        if groups:
            area = seq_lengths[groups[-1][0]] * (len(groups[-1]) + 1)
            if filled + length >= (1 - waste_frac) * area:
                groups[-1].append(seq)
                filled += length
                continue
        groups.append([seq])
        filled = length
    return groups
