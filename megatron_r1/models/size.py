"""How many parameters a model has, from its configuration alone."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.config.model import (
    DeepseekV3Config,
    GroupedQueryConfig,
    Head,
    MixtureConfig,
    ModelConfig,
)


@dataclass(frozen=True)
class ParameterCount:
    """Numbers of weights; `total` and `active` are without multi-token prediction layers."""

    total: int
    active: int
    """Weights that one token meets, embedding and head included."""
    attention_per_layer: int
    mtp: int
    """Multi-token prediction layers; embedding and head are the model's own."""


def count_parameters(config: ModelConfig, head: Head = Head.vocabulary) -> ParameterCount:
    """Count weights; the router's expert bias is a buffer and is none."""
    width = config.hidden_size
    embedding = config.vocab_size * width
    if head is Head.scalar:
        embeddings = embedding + width
    else:
        embeddings = embedding * (1 if config.tie_embeddings else 2)
    attention = _attention(config)
    outside = embeddings + width  # and the final norm
    per_layer = attention + 2 * width  # and the two norms
    dense = 3 * width * config.ffn_hidden_size
    if not isinstance(config, MixtureConfig):
        total = outside + config.num_layers * (per_layer + dense)
        return ParameterCount(
            total=total,
            active=total,
            attention_per_layer=attention,
            mtp=config.num_mtp_layers * (_around_mtp(width) + per_layer + dense),
        )
    expert = 3 * width * config.moe_ffn_hidden_size
    num_shared = config.num_shared_experts if isinstance(config, DeepseekV3Config) else 0
    always = expert * num_shared + width * config.num_experts  # and the router
    num_sparse = config.num_layers - config.num_dense_layers
    common = outside + config.num_layers * per_layer + config.num_dense_layers * dense

    sparse = per_layer + always + expert * config.num_experts
    last = sparse if num_sparse else per_layer + dense

    def with_experts(count: int) -> int:
        return common + num_sparse * (always + expert * count)

    return ParameterCount(
        total=with_experts(config.num_experts),
        active=with_experts(config.experts_per_token),
        attention_per_layer=attention,
        mtp=config.num_mtp_layers * (_around_mtp(width) + last),
    )


def _around_mtp(width: int) -> int:
    """What a prediction layer has besides its transformer layer: a projection and three norms."""
    return 2 * width * width + 3 * width


def _attention(config: ModelConfig) -> int:
    width, heads = config.hidden_size, config.num_attention_heads
    if isinstance(config, DeepseekV3Config):
        key_width = config.qk_nope_head_dim + config.qk_rope_head_dim
        rank = config.q_lora_rank
        query = width * heads * key_width
        if rank is not None:
            query = (width + 1) * rank + rank * heads * key_width
        latent = width * (config.kv_lora_rank + config.qk_rope_head_dim) + config.kv_lora_rank
        key_value = config.kv_lora_rank * heads * (config.qk_nope_head_dim + config.v_head_dim)
        return query + latent + key_value + heads * config.v_head_dim * width
    assert isinstance(config, GroupedQueryConfig), f"no count for {type(config).__name__}"
    columns = (heads + 2 * config.num_kv_heads) * config.head_dim
    bias = columns if config.qkv_bias else 0
    norms = 2 * config.head_dim if config.qk_norm else 0
    return width * columns + bias + norms + heads * config.head_dim * width
