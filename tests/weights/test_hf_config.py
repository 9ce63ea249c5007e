"""config.json, there and back, and what is refused."""

from __future__ import annotations

import dataclasses
import json
from functools import cache

import pytest

from megatron_r1.config.load import CONF_DIR, load_config
from megatron_r1.config.model import (
    DeepseekV3Config,
    GroupedQueryConfig,
    ModelConfig,
    Qwen3MoeConfig,
    RopeConfig,
    RopeScaling,
)
from megatron_r1.errors import ConfigError
from megatron_r1.weights.hf_config import hf_config, model_config_from_hf

MODELS = sorted(file.stem for file in (CONF_DIR / "model").glob("*.yaml"))

# The files of the hub, without what is about tokens, precision and other software.
LLAMA_3_1_8B = json.loads("""{
    "architectures": ["LlamaForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 14336, "max_position_embeddings": 131072, "mlp_bias": false,
    "model_type": "llama", "num_attention_heads": 32, "num_hidden_layers": 32,
    "num_key_value_heads": 8, "pretraining_tp": 1, "rms_norm_eps": 1e-05,
    "rope_scaling": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                     "original_max_position_embeddings": 8192, "rope_type": "llama3"},
    "rope_theta": 500000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
    "vocab_size": 128256}""")
QWEN_2_5_7B = json.loads("""{
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "hidden_act": "silu",
    "hidden_size": 3584, "initializer_range": 0.02, "intermediate_size": 18944,
    "max_position_embeddings": 131072, "max_window_layers": 28, "model_type": "qwen2",
    "num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "sliding_window": 131072,
    "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_mrope": false,
    "use_sliding_window": false, "vocab_size": 152064}""")
DEEPSEEK_R1 = json.loads("""{
    "architectures": ["DeepseekV3ForCausalLM"], "attention_bias": false, "ep_size": 1,
    "first_k_dense_replace": 3, "hidden_act": "silu", "hidden_size": 7168,
    "initializer_range": 0.02, "intermediate_size": 18432, "kv_lora_rank": 512,
    "max_position_embeddings": 163840, "model_type": "deepseek_v3", "moe_intermediate_size": 2048,
    "moe_layer_freq": 1, "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1,
    "norm_topk_prob": true, "num_attention_heads": 128, "num_experts_per_tok": 8,
    "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
    "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0,
                     "mscale_all_dim": 1.0, "original_max_position_embeddings": 4096,
                     "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 2.5, "scoring_func": "sigmoid",
    "tie_word_embeddings": false, "topk_group": 4, "topk_method": "noaux_tc",
    "v_head_dim": 128, "vocab_size": 129280}""")


@cache
def of_conf(name: str) -> ModelConfig:
    return load_config([f"model={name}"]).model


def ours(name: str, **changes) -> ModelConfig:
    return dataclasses.replace(of_conf(name), **changes)


@pytest.mark.parametrize("name", MODELS)
def test_every_model_of_conf_comes_back_from_its_config_json(name):
    config = ours(name)
    text = json.dumps(hf_config(config))
    assert model_config_from_hf(json.loads(text), "config.json", name=name) == config


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_model(name):
    # What it writes in turn has `rope_parameters` in place of `rope_scaling`.
    from transformers import AutoConfig

    config = ours(name, **({"num_mtp_layers": 1} if name == "deepseek_v3" else {}))
    fields = hf_config(config)
    theirs = AutoConfig.for_model(**{k: v for k, v in fields.items() if k != "architectures"})
    written = {**theirs.to_dict(), "architectures": fields["architectures"]}
    assert "rope_scaling" not in written and written["rope_parameters"]["rope_theta"]
    assert model_config_from_hf(written, "config.json", name=name) == config


@pytest.mark.parametrize(
    ("config_json", "name", "changes"),
    [
        (LLAMA_3_1_8B, "llama3.1_8b", {}),
        (QWEN_2_5_7B, "qwen2.5_7b", {}),
        (DEEPSEEK_R1, "deepseek_v3", {"num_mtp_layers": 1}),
    ],
)
def test_files_of_the_hub_give_the_models_of_conf(config_json, name, changes):
    read = model_config_from_hf(config_json, "config.json", name=name)
    assert read == ours(name, **changes)


def test_the_architecture_follows_from_the_switches():
    expected = {
        "qwen2.5_7b": ("Qwen2ForCausalLM", GroupedQueryConfig),
        "qwen3_8b": ("Qwen3ForCausalLM", GroupedQueryConfig),
        "llama3.1_8b": ("LlamaForCausalLM", GroupedQueryConfig),
        "qwen3_30b_a3b": ("Qwen3MoeForCausalLM", Qwen3MoeConfig),
        "moonlight_16b_a3b": ("DeepseekV3ForCausalLM", DeepseekV3Config),
    }
    for name, (architecture, schema) in expected.items():
        config = ours(name)
        assert hf_config(config)["architectures"] == [architecture]
        assert type(config) is schema


def test_first_layers_of_a_qwen3_mixture_may_be_dense():
    config = ours("qwen3_30b_a3b", num_dense_layers=2)
    assert hf_config(config)["mlp_only_layers"] == [0, 1]
    assert model_config_from_hf(hf_config(config), "config.json", name=config.name) == config


def test_yarn_of_qwen_has_the_papers_magnitude():
    # As Qwen2.5's model card has it, for contexts of 131,072 tokens.
    scaling = {"factor": 4.0, "original_max_position_embeddings": 32768, "type": "yarn"}
    rope = model_config_from_hf({**QWEN_2_5_7B, "rope_scaling": scaling}, "config.json").rope
    assert rope == RopeConfig(
        theta=1e6,
        scaling=RopeScaling.yarn,
        factor=4.0,
        original_max_positions=32768,
        mscale=1.0,
        mscale_all_dim=0.0,
    )
    written = hf_config(ours("qwen2.5_7b", rope=rope))["rope_scaling"]
    assert "mscale" not in written and written["rope_type"] == "yarn"


def test_old_files_leave_key_heads_and_head_width_to_be_derived():
    config_json = {**LLAMA_3_1_8B, "num_key_value_heads": None}
    config = model_config_from_hf(config_json, "config.json")
    assert (config.num_kv_heads, config.head_dim) == (32, 128)


@pytest.mark.parametrize(
    ("config_json", "change", "words"),
    [
        (QWEN_2_5_7B, {"architectures": ["GPT2LMHeadModel"]}, ["GPT2LM", "LlamaForCausalLM"]),
        (QWEN_2_5_7B, {"architectures": None}, ["architectures = []", "Qwen2ForCausalLM"]),
        (QWEN_2_5_7B, {"use_sliding_window": True}, ["use_sliding_window = True"]),
        (QWEN_2_5_7B, {"layer_types": ["sliding_attention"]}, ["layer_types", "full_attention"]),
        (QWEN_2_5_7B, {"hidden_act": "gelu"}, ["hidden_act = 'gelu'", "'silu'"]),
        (LLAMA_3_1_8B, {"attention_bias": True}, ["attention_bias = True"]),
        (LLAMA_3_1_8B, {"mlp_bias": True}, ["mlp_bias = True"]),
        (LLAMA_3_1_8B, {"partial_rotary_factor": 0.5}, ["partial_rotary_factor = 0.5"]),
        (
            QWEN_2_5_7B,
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            ["rope_scaling.rope_type = 'dynamic'", "default, yarn, llama3"],
        ),
        (
            QWEN_2_5_7B,
            {"rope_scaling": {"type": "yarn", "factor": 2.0, "attention_factor": 1.5}},
            ["attention_factor = 1.5", "'yarn'"],
        ),
        (QWEN_2_5_7B, {"rope_scaling": {"type": "yarn"}}, ["rope_scaling lacks factor", "yarn"]),
        (DEEPSEEK_R1, {"scoring_func": "softmax"}, ["scoring_func = 'softmax'", "'sigmoid'"]),
        (DEEPSEEK_R1, {"norm_topk_prob": False}, ["norm_topk_prob = False"]),
        (DEEPSEEK_R1, {"hidden_size": None}, ["lacks hidden_size"]),
    ],
)
def test_what_is_not_supported_is_named(config_json, change, words):
    with pytest.raises(ConfigError) as caught:
        model_config_from_hf({**config_json, **change}, "some/config.json")
    text = str(caught.value)
    assert "some/config.json" in text
    for word in words:
        assert word in text


def test_a_missing_field_is_named():
    config_json = {k: v for k, v in DEEPSEEK_R1.items() if k != "kv_lora_rank"}
    with pytest.raises(ConfigError, match="some/config.json lacks kv_lora_rank"):
        model_config_from_hf(config_json, "some/config.json")
