"""A tiny model of every family, with whatever sets the family apart in use."""

from __future__ import annotations

from megatron_r1.config.load import load_config
from megatron_r1.config.run import RunConfig

_LLAMA_ROPE = "scaling=llama3 theta=500000 factor=8 original_max_positions=64"
_YARN = "scaling=yarn theta=1e6 factor=4 original_max_positions=128 mscale_all_dim=0"


def _model(base: str, settings: str, rope: str = "") -> list[str]:
    return [
        f"model={base}",
        *(f"model.{setting}" for setting in settings.split()),
        *(f"model.rope.{setting}" for setting in rope.split()),
    ]


FAMILIES = {
    # A group's score is the sum of its best experts_per_token / groups_per_token experts (V3 report
    # section 2.1.2); Hugging Face takes the best two whatever the numbers, so there are 4 / 2 here.
    "deepseek_v3": _model(
        "tiny_v3", "num_experts=16 experts_per_token=4 num_expert_groups=4 groups_per_token=2"
    ),
    "moonlight": _model(
        "tiny_v3",
        "q_lora_rank=null num_expert_groups=1 experts_per_token=3 num_shared_experts=2 "
        "routed_scaling=2.446 norm_eps=1e-5",
        rope="scaling=none theta=50000",
    ),
    "qwen2.5": _model("tiny_dense", ""),
    "qwen2.5_yarn": _model("tiny_dense", "tie_embeddings=false", rope=_YARN),
    # Heads wider than their share of the model, as in Qwen3-0.6B and 4B.
    "qwen3": _model("tiny_dense", "qkv_bias=false qk_norm=true head_dim=48", rope="theta=1e6"),
    "qwen3_moe": _model("tiny_qwen3_moe", "num_dense_layers=1"),
    "qwen3_moe_raw_weights": _model(
        "tiny_qwen3_moe", "normalize_weights=false experts_per_token=4"
    ),
    "llama3": _model(
        "tiny_dense", "qkv_bias=false tie_embeddings=false norm_eps=1e-5", rope=_LLAMA_ROPE
    ),
}


def load_family(name: str, *overrides: str) -> RunConfig:
    return load_config([*FAMILIES[name], "rollout.max_response_tokens=64", *overrides])
