"""Self-attention over a token stream: grouped-query and multi-latent, training and decoding.

    T tokens of the stream     H heads of this rank       S x L sequences as a padded rectangle
    K query and key width      G key heads of this rank   C cached columns, R rope width
    V value width              D latent width

Weights, projections and their parallelism are Megatron-Core's; ours is what attention
looks at. What training and prefill attend with is in `core_attention.py`.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.tensor_parallel import checkpoint
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.attention import Attention, SelfAttention
from megatron.core.transformer.multi_latent_attention import MLASelfAttention
from megatron.core.transformer.spec_utils import ModuleSpec, build_module
from torch import Tensor

from megatron_r1.models.fp8_linear import seen_by_product, weight_in_product
from megatron_r1.models.layers import ReplicatedLinear
from megatron_r1.models.rope import rotate
from megatron_r1.models.stream import TokenStream


class StreamSelfAttention(SelfAttention):
    """Grouped-query attention (Qwen2.5, Qwen3, Llama 3); Qwen3 has a norm on each query and key."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None,
        *,
        packed_seq_params: TokenStream,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[T, 1, width] -> [T, 1, width]; sharded along T under sequence parallelism."""
        stream = packed_seq_params
        query, key, value = self.get_query_key_value_tensors(hidden_states)
        angles = (stream.rope_cos_TK, stream.rope_sin_TK)
        q_THK = rotate(query.squeeze(1), *angles, interleaved=False)
        k_TGK = rotate(key.squeeze(1), *angles, interleaved=False)
        v_TGK = value.squeeze(1)
        if stream.cache is not None:
            columns = torch.cat((k_TGK.flatten(1), v_TGK.flatten(1)), dim=-1)
            rows_T, positions_T = stream.cache_rows_T, stream.positions_T
            stream.cache.write(self.layer_number, rows_T, positions_T, columns)
        if stream.decoding:
            out_THK = self._decode(q_THK, stream)
        else:
            out_THK = _core_attention(self, q_THK, k_TGK, v_TGK, stream)
        return self.linear_proj(out_THK.flatten(1).unsqueeze(1))

    def _decode(self, q_THK: Tensor, stream: TokenStream) -> Tensor:
        num_tokens, num_heads, width = q_THK.shape
        groups = self.num_query_groups_per_partition
        cached = stream.cache.read(self.layer_number, num_tokens, stream.max_context)
        k_TGCK, v_TGCK = (
            x.unflatten(-1, (groups, width)).transpose(1, 2) for x in cached.chunk(2, dim=-1)
        )
        # Heads that share a key stand side by side, as if they were queries of one head.
        q_TGHK = q_THK.unflatten(1, (groups, num_heads // groups))
        mask = stream.context_mask_TC[:, None, None, :]
        out_TGHK = F.scaled_dot_product_attention(q_TGHK, k_TGCK, v_TGCK, attn_mask=mask)
        return out_TGHK.flatten(1, 2)


class StreamLatentAttention(MLASelfAttention):
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434, section 2.1; V3 section 2.1.1).

    Decoding absorbs the up-projections into query and output, and the cache holds latents alone.
    """

    def __init__(
        self, *args: Any, replicated: ModuleSpec | type = ReplicatedLinear, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        # Megatron's constructor accepts its own linears only; see ReplicatedLinear for why not
        # those.
        config = self.config
        if config.q_lora_rank is not None:
            self.linear_q_down_proj = build_module(
                replicated,
                config.hidden_size,
                config.q_lora_rank,
                config=config,
                init_method=config.init_method,
            )
        self.linear_kv_down_proj = build_module(
            replicated,
            config.hidden_size,
            config.kv_lora_rank + config.qk_pos_emb_head_dim,
            config=config,
            init_method=config.init_method,
        )

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: None,
        *,
        packed_seq_params: TokenStream,
        **_: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """[T, 1, width] -> [T, 1, width]; sharded along T under sequence parallelism."""
        stream = packed_seq_params
        angles = (stream.rope_cos_TK, stream.rope_sin_TK)
        nope, rope = self.config.qk_head_dim, self.config.qk_pos_emb_head_dim

        q_THK = self._query(hidden_states).squeeze(1).unflatten(-1, (-1, nope + rope))
        q_nope_THK, q_rope_THR = q_THK.split((nope, rope), dim=-1)
        q_rope_THR = rotate(q_rope_THR, *angles, interleaved=True)

        latent, k_rope = self.linear_kv_down_proj(hidden_states)[0].split(
            (self.config.kv_lora_rank, rope), dim=-1
        )
        latent = self.kv_layernorm(latent)
        # Every rank's heads read the one rope key, so its gradient is summed over them.
        k_rope_TR = self._to_all_heads(k_rope).squeeze(1)
        k_rope_TR = rotate(k_rope_TR.unsqueeze(1), *angles, interleaved=True).squeeze(1)

        if stream.cache is not None:
            # Only the up-projection reads latents; the cache holds what it sees of them.
            seen = seen_by_product(self.linear_kv_up_proj, self._whole_stream(latent))
            columns = torch.cat((seen.squeeze(1), k_rope_TR), dim=-1)
            rows_T, positions_T = stream.cache_rows_T, stream.positions_T
            stream.cache.write(self.layer_number, rows_T, positions_T, columns)
        if stream.decoding:
            out_THV = self._decode(q_nope_THK, q_rope_THR, stream)
        else:
            kv_THK = self.linear_kv_up_proj(latent)[0].squeeze(1)
            kv_THK = kv_THK.unflatten(-1, (-1, nope + self.config.v_head_dim))
            k_nope_THK, v_THV = kv_THK.split((nope, self.config.v_head_dim), dim=-1)
            k_rope_THR = k_rope_TR.unsqueeze(1).expand(-1, k_nope_THK.shape[1], -1)
            out_THV = _core_attention(
                self,
                torch.cat((q_nope_THK, q_rope_THR), dim=-1),
                torch.cat((k_nope_THK, k_rope_THR), dim=-1),
                v_THV,
                stream,
            )
        return self.linear_proj(out_THV.flatten(1).unsqueeze(1))

    def _query(self, hidden_states: Tensor) -> Tensor:
        if self.config.q_lora_rank is None:
            return self.linear_q_proj(hidden_states)[0]
        q_latent = self.q_layernorm(self.linear_q_down_proj(hidden_states)[0])
        return self.linear_q_up_proj(q_latent)[0]

    def _decode(self, q_nope_THK: Tensor, q_rope_THR: Tensor, stream: TokenStream) -> Tensor:
        """Attention among latents: q W_uk against them, then W_uv on their weighted sum."""
        weight = weight_in_product(self.linear_kv_up_proj)
        weight_HKD = weight.unflatten(0, (q_nope_THK.shape[1], -1))
        up_k_HKD, up_v_HVD = weight_HKD.split((q_nope_THK.shape[-1], self.config.v_head_dim), dim=1)
        q_latent_THD = torch.bmm(q_nope_THK.transpose(0, 1), up_k_HKD).transpose(0, 1)
        q_THK = torch.cat((q_latent_THD, q_rope_THR), dim=-1)
        cached_TCK = stream.cache.read(self.layer_number, q_THK.shape[0], stream.max_context)
        scores_THC = torch.bmm(q_THK, cached_TCK.transpose(1, 2)).float() * self.softmax_scale
        mask = ~stream.context_mask_TC[:, None, :]
        probs_THC = torch.softmax(scores_THC.masked_fill_(mask, float("-inf")), dim=-1)
        latent_TCD = cached_TCK[..., : self.config.kv_lora_rank]
        out_THD = torch.bmm(probs_THC.to(latent_TCD.dtype), latent_TCD)
        return torch.bmm(out_THD.transpose(0, 1), up_v_HVD.transpose(1, 2)).transpose(0, 1)

    def _to_all_heads(self, x: Tensor) -> Tensor:
        if self.config.sequence_parallel:
            return gather_from_sequence_parallel_region(x, group=self.tp_group)
        return copy_to_tensor_model_parallel_region(x, group=self.tp_group)

    def _whole_stream(self, x: Tensor) -> Tensor:
        if self.config.sequence_parallel:
            return gather_from_sequence_parallel_region(x, group=self.tp_group)
        return x


def _core_attention(
    module: Attention, q: Tensor, k: Tensor, v: Tensor, stream: TokenStream
) -> Tensor:
    """The module's core, computed again in the backward pass where `module` is told to."""
    attend = partial(module.core_attention, stream=stream)
    if module.checkpoint_core_attention and module.training:
        return checkpoint(attend, False, q, k, v)
    return attend(q, k, v)
