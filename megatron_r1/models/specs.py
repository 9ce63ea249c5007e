"""From our model configuration to Megatron-Core's: transformer config and layer specs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.transformer.attention import SelfAttentionSubmodules
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.identity_op import IdentityOp
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.moe.experts import SequentialMLP
from megatron.core.transformer.moe.moe_layer import MoELayer, MoESubmodules
from megatron.core.transformer.moe.shared_experts import SharedExpertMLP
from megatron.core.transformer.multi_latent_attention import MLASelfAttentionSubmodules
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_block import TransformerBlockSubmodules
from megatron.core.transformer.transformer_config import MLATransformerConfig, TransformerConfig
from megatron.core.transformer.transformer_layer import TransformerLayerSubmodules

from megatron_r1.config.model import (
    DeepseekV3Config,
    GroupedQueryConfig,
    MixtureConfig,
    ModelConfig,
    Qwen3MoeConfig,
    RopeScaling,
)
from megatron_r1.config.parallel import ParallelConfig, Recompute
from megatron_r1.config.precision import PrecisionConfig
from megatron_r1.models.attention import StreamLatentAttention, StreamSelfAttention
from megatron_r1.models.moe import StreamLayer, StreamRouter
from megatron_r1.models.mtp import mtp_block_spec
from megatron_r1.models.precision import LayerParts, fp8_fields
from megatron_r1.parallel.pipeline_split import layers_per_chunk


def transformer_config(
    model: ModelConfig,
    parallel: ParallelConfig,
    dtype: torch.dtype,
    precision: PrecisionConfig,
    *,
    grouped_experts: bool = False,
) -> TransformerConfig:
    """Megatron-Core's configuration of this model in this layout."""
    common: dict[str, Any] = dict(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        layernorm_epsilon=model.norm_eps,
        init_method_std=model.init_std,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        apply_rope_fusion=False,
        persist_layer_norm=False,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        bf16=dtype is torch.bfloat16,
        use_cpu_initialization=not torch.cuda.is_available(),
        tensor_model_parallel_size=parallel.tensor,
        pipeline_model_parallel_size=parallel.pipeline,
        pipeline_model_parallel_layout=_pipeline_layout(model, parallel),
        # Two stages with several chunks send each other two tensors at once, which a batch of
        # exchanges could mix up; Megatron's way out is to send them one by one.
        overlap_p2p_comm=parallel.virtual_pipeline > 1,
        batch_p2p_comm=parallel.virtual_pipeline == 1,
        context_parallel_size=parallel.context,
        expert_model_parallel_size=parallel.expert,
        expert_tensor_parallel_size=parallel.expert_tensor,
        sequence_parallel=parallel.sequence_parallel,
        mtp_num_layers=model.num_mtp_layers or None,
        **_recompute_fields(parallel.recompute),
        # Streams differ in length from one micro-batch to the next; only all-to-all takes that.
        variable_seq_lengths=True,
        moe_token_dispatcher_type="alltoall",
        # Losses come normalised over the whole step: gradients are summed, never averaged.
        calculate_per_token_loss=True,
        **fp8_fields(precision),
    )
    if isinstance(model, MixtureConfig):
        common |= _mixture_fields(model)
        common |= dict(
            moe_grouped_gemm=grouped_experts,
            moe_router_padding_for_quantization=grouped_experts and "fp8" in common,
        )
    if isinstance(model, DeepseekV3Config):
        return MLATransformerConfig(**common, **_deepseek_v3_fields(model))
    assert isinstance(model, GroupedQueryConfig), f"no configuration for {type(model).__name__}"
    if isinstance(model, Qwen3MoeConfig):
        # A softmax after the choice, over the chosen, has them add up to 1.
        common |= dict(
            moe_router_score_function="softmax",
            moe_router_pre_softmax=not model.normalize_weights,
        )
    return TransformerConfig(
        **common,
        num_query_groups=model.num_kv_heads,
        kv_channels=model.head_dim,
        add_qkv_bias=model.qkv_bias,
        qk_layernorm=model.qk_norm,
    )


def _mixture_fields(model: MixtureConfig) -> dict[str, Any]:
    num_sparse = model.num_layers - model.num_dense_layers
    return dict(
        num_moe_experts=model.num_experts,
        moe_layer_freq=[0] * model.num_dense_layers + [1] * num_sparse,
        moe_ffn_hidden_size=model.moe_ffn_hidden_size,
        moe_router_topk=model.experts_per_token,
        moe_router_load_balancing_type="seq_aux_loss",
        moe_aux_loss_coeff=model.balance_loss,
        moe_router_dtype="fp32",
    )


def _pipeline_layout(model: ModelConfig, parallel: ParallelConfig) -> list[list[str]] | None:
    """The same as Megatron-Core takes it."""
    if parallel.pipeline == 1:
        return None
    layout = [["decoder"] * count for count in layers_per_chunk(model, parallel)]
    layout[0].insert(0, "embedding")
    layout[-1] += ["mtp"] * model.num_mtp_layers + ["loss"]
    return layout


def _recompute_fields(recompute: Recompute) -> dict[str, Any]:
    if recompute is Recompute.none:
        return {}
    if recompute is Recompute.selective:
        return dict(recompute_granularity="selective", recompute_modules=["core_attn"])
    return dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)


def _deepseek_v3_fields(model: DeepseekV3Config) -> dict[str, Any]:
    yarn = model.rope.scaling is RopeScaling.yarn
    grouped = model.num_expert_groups > 1
    return dict(
        multi_latent_attention=True,
        q_lora_rank=model.q_lora_rank,
        kv_lora_rank=model.kv_lora_rank,
        qk_head_dim=model.qk_nope_head_dim,
        qk_pos_emb_head_dim=model.qk_rope_head_dim,
        v_head_dim=model.v_head_dim,
        qk_layernorm=True,
        rope_type="yarn" if yarn else "rope",
        rotary_base=model.rope.theta,
        # The softmax scale is multiplied by mscale(factor, mscale_all_dim) squared; 1 without YaRN.
        rotary_scaling_factor=model.rope.factor if yarn else 1.0,
        mscale=model.rope.mscale,
        mscale_all_dim=model.rope.mscale_all_dim,
        original_max_position_embeddings=model.rope.original_max_positions,
        beta_fast=model.rope.beta_fast,
        beta_slow=model.rope.beta_slow,
        moe_shared_expert_intermediate_size=(
            model.num_shared_experts * model.moe_ffn_hidden_size or None
        ),
        moe_router_num_groups=model.num_expert_groups if grouped else None,
        moe_router_group_topk=model.groups_per_token if grouped else None,
        moe_router_topk_scaling_factor=model.routed_scaling,
        moe_router_score_function="sigmoid",
        moe_router_pre_softmax=True,
        moe_router_enable_expert_bias=True,
        moe_router_bias_update_rate=model.bias_update_rate,
    )


def block_spec(
    model: ModelConfig,
    config: TransformerConfig,
    parts: LayerParts,
    *,
    first_layer: int,
    num_layers: int,
) -> TransformerBlockSubmodules:
    """Layers first_layer .. first_layer + num_layers - 1 (from 0) of this family, for one chunk."""
    if isinstance(model, DeepseekV3Config):
        attention = _latent_attention_spec(parts)
    else:
        attention = _grouped_query_attention_spec(parts, qk_norm=config.qk_layernorm)
    mixture = isinstance(model, MixtureConfig)
    num_dense = model.num_dense_layers if mixture else model.num_layers
    layers = [
        _layer_spec(parts, attention, _dense_mlp_spec(parts) if i < num_dense else _moe_spec(parts))
        for i in range(first_layer, first_layer + num_layers)
    ]
    return TransformerBlockSubmodules(layer_specs=layers, layer_norm=parts.norm)


def prediction_spec(
    model: ModelConfig, config: TransformerConfig, parts: LayerParts
) -> ModuleSpec | None:
    """The model's multi-token prediction layers, each like its last layer; None without any."""
    if model.num_mtp_layers == 0:
        return None
    last = block_spec(model, config, parts, first_layer=model.num_layers - 1, num_layers=1)
    return mtp_block_spec(last.layer_specs[0], model.num_mtp_layers)


def _layer_spec(parts: LayerParts, attention: ModuleSpec, mlp: ModuleSpec) -> ModuleSpec:
    return ModuleSpec(
        module=StreamLayer,
        submodules=TransformerLayerSubmodules(
            input_layernorm=parts.norm,
            self_attention=attention,
            self_attn_bda=get_bias_dropout_add,
            pre_mlp_layernorm=parts.norm,
            mlp=mlp,
            mlp_bda=get_bias_dropout_add,
        ),
    )


def _latent_attention_spec(parts: LayerParts) -> ModuleSpec:
    return ModuleSpec(
        module=StreamLatentAttention,
        params={"attn_mask_type": AttnMaskType.causal, "replicated": parts.replicated},
        submodules=MLASelfAttentionSubmodules(
            linear_q_proj=parts.column,
            linear_q_down_proj=ColumnParallelLinear,
            linear_q_up_proj=parts.column,
            linear_kv_down_proj=ColumnParallelLinear,
            linear_kv_up_proj=parts.column,
            core_attention=parts.attention,
            linear_proj=parts.row,
            q_layernorm=parts.latent_norm,
            kv_layernorm=parts.latent_norm,
        ),
    )


def _grouped_query_attention_spec(parts: LayerParts, *, qk_norm: bool) -> ModuleSpec:
    norm = parts.norm if qk_norm else IdentityOp
    return ModuleSpec(
        module=StreamSelfAttention,
        params={"attn_mask_type": AttnMaskType.causal},
        submodules=SelfAttentionSubmodules(
            linear_qkv=parts.column,
            core_attention=parts.attention,
            linear_proj=parts.row,
            q_layernorm=norm,
            k_layernorm=norm,
        ),
    )


def _mlp_submodules(parts: LayerParts) -> MLPSubmodules:
    return MLPSubmodules(linear_fc1=parts.column, linear_fc2=parts.row)


def _dense_mlp_spec(parts: LayerParts) -> ModuleSpec:
    return ModuleSpec(module=MLP, submodules=_mlp_submodules(parts))


def _experts_spec(parts: LayerParts) -> ModuleSpec:
    if parts.grouped is None:
        return ModuleSpec(module=SequentialMLP, submodules=_mlp_submodules(parts))
    module, column, row = parts.grouped
    return ModuleSpec(module=module, submodules=MLPSubmodules(linear_fc1=column, linear_fc2=row))


def _moe_spec(parts: LayerParts) -> ModuleSpec:
    return ModuleSpec(
        module=MoELayer,
        submodules=MoESubmodules(
            router=StreamRouter,
            experts=_experts_spec(parts),
            shared_experts=ModuleSpec(module=SharedExpertMLP, submodules=_mlp_submodules(parts)),
        ),
    )
