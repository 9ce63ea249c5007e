"""`core_attention.py` by Transformer Engine: fused, and going round the context ranks.

T tokens of the stream     H heads of this rank       K query and key width
                           G key heads of this rank   V value width
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer.enums import AttnMaskType
from torch import Tensor

from megatron_r1.config.model import DeepseekV3Config, ModelConfig
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.models.stream import TokenStream


@dataclass(frozen=True)
class Heads:
    """What the attention of one rank is asked for."""

    num_heads: int
    num_groups: int
    """Of keys."""
    key_width: int
    value_width: int
    context_ranks: int = 1

    @staticmethod
    def of(model: ModelConfig, parallel: ParallelConfig) -> Heads:
        """A rank's of this model in this layout."""
        if isinstance(model, DeepseekV3Config):
            num_groups, value_width = model.num_attention_heads, model.v_head_dim
            key_width = model.qk_nope_head_dim + model.qk_rope_head_dim
        else:
            num_groups, key_width = model.num_kv_heads, model.head_dim
            value_width = key_width
        return Heads(
            num_heads=model.num_attention_heads // parallel.tensor,
            num_groups=num_groups // parallel.tensor,
            key_width=key_width,
            value_width=value_width,
            context_ranks=parallel.context,
        )


class PackedAttention(torch.nn.Module):
    """Transformer Engine's attention over a packed stream.

    Under context parallelism keys and values go round the ranks (ring attention,
    arXiv:2310.01889), which hold early and late chunks of every sequence as `ContextShard` cuts
    them. What fills a sequence up to whole chunks counts as its last tokens: the causal mask hides
    them from all others.
    """

    def __init__(self, *, attend: Any, **core: Any) -> None:
        """
        Args:
            attend: Megatron-Core's `TEDotProductAttention`.
            core: what Megatron's attention modules build their core of.
        """
        super().__init__()
        self._attend = attend(**core)

    def forward(self, q_THK: Tensor, k_TGK: Tensor, v_TGV: Tensor, stream: TokenStream) -> Tensor:
        """As `causal_attention`."""
        num_tokens, num_heads, _ = q_THK.shape
        num_held = num_tokens if stream.context is None else sum(stream.context.lengths)
        # Tokens of no sequence, which fill up a context rank's part, come last.
        num_fill = num_tokens - num_held
        if num_fill > 0:
            q_THK, k_TGK, v_TGV = (x[:num_held] for x in (q_THK, k_TGK, v_TGV))
        out = self._attend(
            q_THK.contiguous(),
            k_TGK.contiguous(),
            v_TGV.contiguous(),
            None,
            AttnMaskType.padding_causal,
            packed_seq_params=stream.packed,
        )
        out_THV = out.view(num_held, num_heads, -1)
        return F.pad(out_THV, (0, 0, 0, 0, 0, num_fill)) if num_fill > 0 else out_THV


def fused_attention_problem(heads: Heads) -> str:
    """Why Transformer Engine has no fused attention for such heads on this device; empty: it has.

    It is asked as its attention asks itself (2.10 and 2.11), for sequences short and long, in
    training and in sampling. The unfused one, which it may fall back to, holds the scores of whole
    sequences.
    """
    from transformer_engine.pytorch.attention.dot_product_attention.utils import (
        AttentionParams,
        get_attention_backend,
    )

    for is_training in (True, False):
        for length in (2 * heads.context_ranks, 32768):
            asked = AttentionParams(
                qkv_dtype=torch.bfloat16,
                qkv_layout="thd_thd_thd",
                batch_size=8,
                num_heads=heads.num_heads,
                num_gqa_groups=heads.num_groups,
                max_seqlen_q=length,
                max_seqlen_kv=length,
                head_dim_qk=heads.key_width,
                head_dim_v=heads.value_width,
                attn_mask_type="padding_causal",
                window_size=(-1, 0),
                core_attention_bias_requires_grad=False,
                context_parallel=heads.context_ranks > 1,
                is_training=is_training,
            )
            by_flash, _, by_cudnn, *_ = get_attention_backend(asked)
            if not (by_flash or by_cudnn):
                return (
                    f"it has no fused one for {heads.num_heads} heads with keys of "
                    f"{heads.key_width} and values of {heads.value_width}, {heads.context_ranks} "
                    f"context ranks and packed sequences of {length} tokens "
                    f"{'in training' if is_training else 'in sampling'}; with NVTE_DEBUG=1 "
                    "NVTE_DEBUG_LEVEL=2 it tells why"
                )
    return ""
