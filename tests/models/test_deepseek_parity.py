"""Whole policies against Hugging Face's implementations of their families, with the same weights.

Float32 on both sides, which add up in different orders: logits agree to 1e-5 of the largest.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_r1.config.load import load_config
from megatron_r1.config.model import DeepseekV3Config, Qwen2Config
from megatron_r1.models.policy import Policy
from tests.models.builders import logits_of, random_tokens

pytestmark = pytest.mark.megatron

LENGTHS = (1, 7, 200, 33)
"""200 lies beyond the 128 positions that tiny_v3's YaRN stretches."""


@torch.no_grad()
def randomize_what_starts_trivial(policy: Policy) -> None:
    """Norms of 1 and biases of 0 would hide that they are left out or stand in the wrong place."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in (*policy.named_parameters(), *policy.named_buffers()):
        noise = torch.randn(tensor.shape, generator=generator)
        if "layernorm" in name:
            tensor.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            tensor.copy_(0.1 * noise)


def weights_of(policy: Policy) -> dict[str, Tensor]:
    named = (*policy.named_parameters(), *policy.named_buffers())
    return {name: tensor.detach().cpu() for name, tensor in named}


def common_weights(ours: dict[str, Tensor], num_layers: int) -> dict[str, Tensor]:
    """Embedding, head, norms and attention's output projection, under their Hugging Face names."""
    theirs = {
        "model.embed_tokens.weight": ours["embedding.word_embeddings.weight"],
        "model.norm.weight": ours["decoder.final_layernorm.weight"],
        "lm_head.weight": ours.get("output_layer.weight", ours["embedding.word_embeddings.weight"]),
    }
    for layer in range(num_layers):
        ours_at, theirs_at = f"decoder.layers.{layer}", f"model.layers.{layer}"
        for our_name, their_name in (
            ("input_layernorm", "input_layernorm"),
            ("pre_mlp_layernorm", "post_attention_layernorm"),
            ("self_attention.linear_proj", "self_attn.o_proj"),
        ):
            theirs[f"{theirs_at}.{their_name}.weight"] = ours[f"{ours_at}.{our_name}.weight"]
    return theirs


def swiglu_weights(ours: dict[str, Tensor], our_block: str, their_block: str) -> dict[str, Tensor]:
    """Megatron's linear_fc1 is the gate's rows, then the up projection's."""
    gate, up = ours[f"{our_block}.linear_fc1.weight"].chunk(2)
    return {
        f"{their_block}.gate_proj.weight": gate,
        f"{their_block}.up_proj.weight": up,
        f"{their_block}.down_proj.weight": ours[f"{our_block}.linear_fc2.weight"],
    }


def deepseek_weights(policy: Policy) -> dict[str, Tensor]:
    config, ours = policy.config, weights_of(policy)
    theirs = common_weights(ours, config.num_layers)
    for layer in range(config.num_layers):
        ours_at, theirs_at = f"decoder.layers.{layer}", f"model.layers.{layer}"
        for our_name, their_name in (
            ("linear_q_down_proj", "q_a_proj"),
            ("q_layernorm", "q_a_layernorm"),
            ("linear_q_up_proj", "q_b_proj"),
            ("linear_kv_down_proj", "kv_a_proj_with_mqa"),
            ("kv_layernorm", "kv_a_layernorm"),
            ("linear_kv_up_proj", "kv_b_proj"),
        ):
            weight = ours[f"{ours_at}.self_attention.{our_name}.weight"]
            theirs[f"{theirs_at}.self_attn.{their_name}.weight"] = weight
        if layer < config.num_dense_layers:
            theirs |= swiglu_weights(ours, f"{ours_at}.mlp", f"{theirs_at}.mlp")
            continue
        theirs[f"{theirs_at}.mlp.gate.weight"] = ours[f"{ours_at}.mlp.router.weight"]
        theirs[f"{theirs_at}.mlp.gate.e_score_correction_bias"] = ours[
            f"{ours_at}.mlp.router.expert_bias"
        ]
        for our_name, their_name in (("linear_fc1", "gate_up_proj"), ("linear_fc2", "down_proj")):
            theirs[f"{theirs_at}.mlp.experts.{their_name}"] = torch.stack(
                [
                    ours[f"{ours_at}.mlp.experts.local_experts.{expert}.{our_name}.weight"]
                    for expert in range(config.num_experts)
                ]
            )
        shared = "mlp.shared_experts"
        theirs |= swiglu_weights(ours, f"{ours_at}.{shared}", f"{theirs_at}.{shared}")
    return theirs


def qwen_weights(policy: Policy) -> dict[str, Tensor]:
    """Rows of linear_qkv: for each key group its query heads, its key head, its value head."""
    config, ours = policy.config, weights_of(policy)
    theirs = common_weights(ours, config.num_layers)
    heads_per_group = config.num_attention_heads // config.num_kv_heads
    for layer in range(config.num_layers):
        ours_at, theirs_at = f"decoder.layers.{layer}", f"model.layers.{layer}"
        for kind in ("weight", "bias"):
            qkv = ours[f"{ours_at}.self_attention.linear_qkv.{kind}"]
            by_group = qkv.unflatten(0, (config.num_kv_heads, heads_per_group + 2, config.head_dim))
            query, key, value = by_group.split((heads_per_group, 1, 1), dim=1)
            for name, rows in (("q_proj", query), ("k_proj", key), ("v_proj", value)):
                theirs[f"{theirs_at}.self_attn.{name}.{kind}"] = rows.flatten(0, 2)
        theirs |= swiglu_weights(ours, f"{ours_at}.mlp", f"{theirs_at}.mlp")
    return theirs


def hugging_face_deepseek(config: DeepseekV3Config) -> torch.nn.Module:
    from transformers import DeepseekV3Config as TheirConfig
    from transformers import DeepseekV3ForCausalLM

    their_config = TheirConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        moe_intermediate_size=config.moe_ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_attention_heads,
        n_shared_experts=config.num_shared_experts,
        n_routed_experts=config.num_experts,
        routed_scaling_factor=config.routed_scaling,
        kv_lora_rank=config.kv_lora_rank,
        q_lora_rank=config.q_lora_rank,
        qk_rope_head_dim=config.qk_rope_head_dim,
        qk_nope_head_dim=config.qk_nope_head_dim,
        v_head_dim=config.v_head_dim,
        n_group=config.num_expert_groups,
        topk_group=config.groups_per_token,
        num_experts_per_tok=config.experts_per_token,
        first_k_dense_replace=config.num_dense_layers,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.norm_eps,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": config.rope.theta,
            "factor": config.rope.factor,
            "original_max_position_embeddings": config.rope.original_max_positions,
            "beta_fast": config.rope.beta_fast,
            "beta_slow": config.rope.beta_slow,
            "mscale": config.rope.mscale,
            "mscale_all_dim": config.rope.mscale_all_dim,
        },
        attn_implementation="eager",
    )
    return DeepseekV3ForCausalLM(their_config)


def hugging_face_qwen(config: Qwen2Config) -> torch.nn.Module:
    from transformers import Qwen2Config as TheirConfig
    from transformers import Qwen2ForCausalLM

    their_config = TheirConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.ffn_hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_attention_heads,
        num_key_value_heads=config.num_kv_heads,
        max_position_embeddings=config.max_positions,
        rms_norm_eps=config.norm_eps,
        tie_word_embeddings=config.tie_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope.theta},
        attn_implementation="eager",
    )
    return Qwen2ForCausalLM(their_config)


@torch.no_grad()
def assert_same_logits(policy: Policy, theirs: torch.nn.Module) -> None:
    """Ours sees all sequences in one stream, theirs one after another."""
    tokens_T = random_tokens(sum(LENGTHS))
    ours_TV = logits_of(policy, tokens_T, LENGTHS)
    theirs_TV = torch.cat([theirs.eval()(part[None]).logits[0] for part in tokens_T.split(LENGTHS)])
    gap = (ours_TV - theirs_TV).abs().max() / theirs_TV.abs().max()
    assert gap < 1e-5, f"logits differ by {gap:.1e} of the largest"


def test_deepseek_v3_computes_what_hugging_face_does(one_rank):
    # A group's score is the sum of its best experts_per_token / groups_per_token experts (V3 report
    # section 2.1.2); Hugging Face takes the best two whatever the numbers, so there are 4 / 2 here.
    experts = ["num_experts=16", "experts_per_token=4", "num_expert_groups=4", "groups_per_token=2"]
    overrides = [f"model.{setting}" for setting in experts]
    config = load_config(["model=tiny_v3", "rollout.max_response_tokens=64", *overrides])
    policy = one_rank.policy(config)
    randomize_what_starts_trivial(policy)
    theirs = hugging_face_deepseek(config.model)
    theirs.load_state_dict(deepseek_weights(policy), strict=True)
    assert_same_logits(policy, theirs)


def test_qwen2_computes_what_hugging_face_does(one_rank):
    config = load_config(["model=tiny_dense", "rollout.max_response_tokens=64"])
    policy = one_rank.policy(config)
    randomize_what_starts_trivial(policy)
    theirs = hugging_face_qwen(config.model)
    theirs.load_state_dict(qwen_weights(policy), strict=True)
    assert_same_logits(policy, theirs)
