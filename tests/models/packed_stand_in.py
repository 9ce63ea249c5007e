"""What Transformer Engine's attention computes of a packed stream, in the place of it on CPUs.

Written after its documentation (`attn_forward_func_with_cp` in 2.10 and 2.11: which tokens a
context rank holds) and Megatron-Core's wrapper (arguments; which context group counts). What
Transformer Engine itself computes is a GPU's to show (docs/gpu.md).
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.packed_seq_params import PackedSeqParams
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_r1.models.packed_attention import PackedAttention


class PackedStandIn(torch.nn.Module):
    """In the place of Megatron-Core's TEDotProductAttention."""

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: AttnMaskType,
        attention_type: str,
        softmax_scale: float | None = None,
        k_channels: int | None = None,
        v_channels: int | None = None,
        cp_comm_type: str | None = "p2p",
        pg_collection: Any = None,
    ) -> None:
        super().__init__()
        tensor_ranks = config.tensor_model_parallel_size
        self.num_heads = config.num_attention_heads // tensor_ranks
        self.num_groups = config.num_query_groups // tensor_ranks
        self.key_width = config.kv_channels if k_channels is None else k_channels
        self.value_width = config.kv_channels if v_channels is None else v_channels
        self.scale = self.key_width**-0.5 if softmax_scale is None else softmax_scale
        # Kept from one pass to the next, as there.
        self.context_group = pg_collection.cp if config.context_parallel_size > 1 else None

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: None,
        attn_mask_type: AttnMaskType,
        attention_bias: None = None,
        packed_seq_params: PackedSeqParams | None = None,
    ) -> Tensor:
        """[t, H, K], [t, G, K], [t, G, V] -> [t, H * V]; not a number where no sequence is."""
        packed = packed_seq_params
        if packed.cp_group is not None:
            self.context_group = packed.cp_group
        elif packed.local_cp_size is not None:
            assert packed.local_cp_size == 1
            self.context_group = None
        assert packed.qkv_format == "thd" and attn_mask_type is AttnMaskType.padding_causal
        assert query.shape[1:] == (self.num_heads, self.key_width)
        assert key.shape[1:] == (self.num_groups, self.key_width)
        assert value.shape[1:] == (self.num_groups, self.value_width)
        assert all(x.is_contiguous() for x in (query, key, value))
        starts = packed.cu_seqlens_q
        assert starts.dtype == torch.int32 and torch.equal(starts, packed.cu_seqlens_kv)
        lengths = starts.diff().tolist()
        assert packed.max_seqlen_q == packed.max_seqlen_kv >= max(lengths)
        assert packed.max_seqlen_q > 1  # of cuDNN, for latent attention

        device = query.device
        held = tokens_T = torch.arange(sum(lengths), device=device)
        if self.context_group is not None:
            num_ranks, rank = self.context_group.size(), self.context_group.rank()
            for padded in (packed.cu_seqlens_q_padded, packed.cu_seqlens_kv_padded):
                assert torch.equal(padded, starts)  # else it would be padding between sequences
            assert all(length % (2 * num_ranks) == 0 for length in lengths)
            everyone = [tokens.to(device) for tokens in rank_tokens(lengths, num_ranks)]
            held, order = everyone[rank], torch.cat(everyone).argsort()
            key, value = (
                gather_from_sequence_parallel_region(
                    x[: len(held)], tensor_parallel_output_grad=True, group=self.context_group
                )[order]
                for x in (key, value)
            )
        sequence_T = torch.bucketize(tokens_T, starts[1:], right=True)
        sees = (sequence_T[held, None] == sequence_T) & (held[:, None] >= tokens_T)
        repeats = self.num_heads // self.num_groups
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
        scores = torch.einsum("qhk,thk->hqt", query[: len(held)], key) * self.scale
        probabilities = scores.masked_fill(~sees, float("-inf")).softmax(dim=-1)
        out = torch.einsum("hqt,thv->qhv", probabilities, value).flatten(1)
        nothing = out.new_full((len(query) - len(held), out.shape[1]), float("nan"))
        return torch.cat((out, nothing))


def in_place_of_transformer_engine() -> ModuleSpec:
    return ModuleSpec(module=PackedAttention, params={"attend": PackedStandIn})


def rank_tokens(lengths: list[int], num_ranks: int) -> list[Tensor]:
    """Tokens of the whole stream that each context rank holds, in its order: of every sequence two
    of 2 x cp chunks, from either end."""
    ranks: list[list[int]] = [[] for _ in range(num_ranks)]
    start = 0
    for length in lengths:
        chunk = length // (2 * num_ranks)
        for rank, tokens in enumerate(ranks):
            tokens += range(start + rank * chunk, start + (rank + 1) * chunk)
            end = start + length - rank * chunk
            tokens += range(end - chunk, end)
        start += length
    return [torch.tensor(tokens) for tokens in ranks]
