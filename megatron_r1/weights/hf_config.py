"""Between Hugging Face's config.json and our model configuration, in both directions.

What a family cannot be told in our configuration is refused by name, never dropped: weights read
under a half-understood configuration would run and be wrong.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_r1.config.model import (
    DeepseekV3Config,
    GroupedQueryConfig,
    Head,
    ModelConfig,
    Qwen3MoeConfig,
    RopeConfig,
    RopeScaling,
)
from megatron_r1.errors import ConfigError

Json = dict[str, Any]


@dataclass(frozen=True)
class _Family:
    """One Hugging Face architecture: whose fields are called what, and what is taken for granted.

    Left of each arrow (ours -> theirs) stands a field of the schema.
    """

    model_type: str
    schema: type[ModelConfig]
    names: Mapping[str, str]
    fixed: Mapping[str, Any]
    """Their fields of which one value is supported; it is also their default."""
    switches: Mapping[str, Any] = field(default_factory=dict)
    """Our fields that the architecture implies."""


_COMMON = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "ffn_hidden_size": "intermediate_size",
    "num_attention_heads": "num_attention_heads",
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "norm_eps": "rms_norm_eps",
    "init_std": "initializer_range",
    "tie_embeddings": "tie_word_embeddings",
}
_GROUPED_QUERY = {**_COMMON, "num_kv_heads": "num_key_value_heads", "head_dim": "head_dim"}
_QWEN3_MOE = {
    **_GROUPED_QUERY,
    "num_experts": "num_experts",
    "experts_per_token": "num_experts_per_tok",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "normalize_weights": "norm_topk_prob",
}
_DEEPSEEK_V3 = {
    **_COMMON,
    "q_lora_rank": "q_lora_rank",
    "kv_lora_rank": "kv_lora_rank",
    "qk_nope_head_dim": "qk_nope_head_dim",
    "qk_rope_head_dim": "qk_rope_head_dim",
    "v_head_dim": "v_head_dim",
    "num_experts": "n_routed_experts",
    "experts_per_token": "num_experts_per_tok",
    "num_expert_groups": "n_group",
    "groups_per_token": "topk_group",
    "moe_ffn_hidden_size": "moe_intermediate_size",
    "num_shared_experts": "n_shared_experts",
    "num_dense_layers": "first_k_dense_replace",
    "routed_scaling": "routed_scaling_factor",
    "num_mtp_layers": "num_nextn_predict_layers",
}

_QWEN = {"hidden_act": "silu", "use_sliding_window": False}
_FAMILIES = {
    "Qwen2ForCausalLM": _Family(
        "qwen2", GroupedQueryConfig, _GROUPED_QUERY, _QWEN, {"qkv_bias": True}
    ),
    "Qwen3ForCausalLM": _Family(
        "qwen3",
        GroupedQueryConfig,
        _GROUPED_QUERY,
        {**_QWEN, "attention_bias": False},
        {"qk_norm": True},
    ),
    "Qwen3MoeForCausalLM": _Family(
        "qwen3_moe",
        Qwen3MoeConfig,
        _QWEN3_MOE,
        {**_QWEN, "attention_bias": False, "decoder_sparse_step": 1},
    ),
    "LlamaForCausalLM": _Family(
        "llama",
        GroupedQueryConfig,
        _GROUPED_QUERY,
        {"hidden_act": "silu", "attention_bias": False, "mlp_bias": False},
    ),
    "DeepseekV3ForCausalLM": _Family(
        "deepseek_v3",
        DeepseekV3Config,
        _DEEPSEEK_V3,
        {
            "hidden_act": "silu",
            "attention_bias": False,
            "moe_layer_freq": 1,
            "norm_topk_prob": True,
            "rope_interleave": True,
            "scoring_func": "sigmoid",
            "topk_method": "noaux_tc",
        },
    ),
}
_SUFFIXES = {Head.vocabulary: "ForCausalLM", Head.scalar: "ForSequenceClassification"}
# What transformers takes where a file is silent; null is silence.
_DEFAULTS = {
    "q_lora_rank": None,
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "tie_word_embeddings": False,
    "norm_topk_prob": False,
    "num_nextn_predict_layers": 0,
}
# transformers 5 writes the one on the left, the hub has the one on the right.
_RENAMED = {"num_local_experts": "num_experts", "num_mtp_layers": "num_nextn_predict_layers"}


def model_config_from_hf(config_json: Json, where: str, *, name: str | None = None) -> ModelConfig:
    """The model of a config.json.

    Fields about precision, about tokens or about how it was trained (`torch_dtype`,
    `quantization_config`, `eos_token_id`, `router_aux_loss_coef`) are not part of it.

    Args:
        where: the file, for messages.
        name: the model's; None takes `model_type`.
    Raises:
        ConfigError: an architecture, a rope type or a setting that is not supported, or a missing
            field; says what is supported.
    """
    architectures = config_json.get("architectures") or []
    if not isinstance(architectures, list) or not all(isinstance(a, str) for a in architectures):
        raise ConfigError(f"{where}: architectures = {architectures!r} is no list of names")
    head = head_from_hf(config_json)
    family = _FAMILIES.get(
        architectures[0].replace(_SUFFIXES[head], _SUFFIXES[Head.vocabulary])
        if len(architectures) == 1
        else ""
    )
    if family is None:
        raise ConfigError(
            f"{where}: architectures = {architectures} is not supported. Supported is one of "
            f"{', '.join(sorted(_FAMILIES))}, or the {_SUFFIXES[Head.scalar]} of one"
        )
    stated = {_RENAMED.get(k, k): v for k, v in config_json.items() if v is not None}
    _check_types(where, family, stated)
    if head is Head.scalar:
        # A file without labels is one of transformers' default, two.
        num_labels = stated.get("num_labels", len(stated.get("id2label", "01")))
        _check(where, "num_labels", num_labels, 1)
        stated["num_nextn_predict_layers"] = 0
    config_json = {**_DEFAULTS, **_derived_defaults(family, stated), **stated}
    for key, value in family.fixed.items():
        _check(where, key, config_json.get(key, value), value)
    layer_types = config_json.get("layer_types") or ["full_attention"]
    if isinstance(layer_types, list) and all(isinstance(name, str) for name in layer_types):
        layer_types = sorted(set(layer_types))
    _check(where, "layer_types", layer_types, ["full_attention"])
    missing = sorted(theirs for theirs in family.names.values() if theirs not in config_json)
    if missing:
        raise ConfigError(
            f"{where} lacks {', '.join(missing)}, which {architectures[0]} needs. Take the "
            "config.json that came with the weights"
        )
    fields = {ours: config_json[theirs] for ours, theirs in family.names.items()}
    if family.schema is Qwen3MoeConfig:
        dense_layers = config_json.get("mlp_only_layers") or []
        fields["num_dense_layers"] = len(dense_layers)
        _check(where, "mlp_only_layers", dense_layers, list(range(len(dense_layers))))
    rope = _rope_config(config_json, where)
    try:
        return family.schema(name=name or family.model_type, rope=rope, **fields, **family.switches)
    except ConfigError as error:  # in our names of the settings, without the file
        raise ConfigError(f"{where}: {error}") from error


def _check_types(where: str, family: _Family, stated: Json) -> None:
    """Refuse text for a number, and a number that is none."""
    types = {field.name: str(field.type) for field in dataclasses.fields(family.schema)}
    for ours, theirs in family.names.items():
        if theirs in stated:
            value = stated[theirs]
            if types[ours] == "float":
                is_right = _is_number(value)
            else:
                is_right = type(value) is (bool if types[ours] == "bool" else int)
            if not is_right:
                raise ConfigError(f"{where}: {theirs} = {value!r} is no {types[ours].split()[0]}")
    if "model_type" in stated:
        _check(where, "model_type", stated["model_type"], family.model_type)


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def head_from_hf(config_json: Json) -> Head:
    """What the model of a config.json ends in."""
    architecture = (config_json.get("architectures") or [""])[0]
    return Head.scalar if architecture.endswith(_SUFFIXES[Head.scalar]) else Head.vocabulary


def hf_config(config: ModelConfig, head: Head = Head.vocabulary) -> Json:
    """The config.json of a model, as transformers 4 and 5 and SGLang read it.

    Token ids and the precision of the weights are the exporter's to add.
    """
    architecture = _architecture(config)
    family = _FAMILIES[architecture]
    architecture = architecture.replace(_SUFFIXES[Head.vocabulary], _SUFFIXES[head])
    config_json: Json = {"architectures": [architecture], "model_type": family.model_type}
    if head is Head.scalar:
        config_json |= {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    config_json |= {theirs: getattr(config, ours) for ours, theirs in family.names.items()}
    config_json |= family.fixed
    if isinstance(config, DeepseekV3Config):
        config_json["num_key_value_heads"] = config.num_attention_heads
    if isinstance(config, Qwen3MoeConfig):
        config_json["mlp_only_layers"] = list(range(config.num_dense_layers))
    config_json["rope_theta"] = config.rope.theta
    config_json["rope_scaling"] = _rope_scaling(config.rope)
    return config_json


def _architecture(config: ModelConfig) -> str:
    if isinstance(config, DeepseekV3Config):
        return "DeepseekV3ForCausalLM"
    if isinstance(config, Qwen3MoeConfig):
        return "Qwen3MoeForCausalLM"
    assert isinstance(config, GroupedQueryConfig), f"no architecture for {type(config).__name__}"
    if config.qkv_bias:
        return "Qwen2ForCausalLM"
    return "Qwen3ForCausalLM" if config.qk_norm else "LlamaForCausalLM"


def _derived_defaults(family: _Family, config_json: Json) -> Json:
    """Fields that older files of Qwen2.5 and Llama leave out, where others tell them."""
    heads, width = config_json.get("num_attention_heads"), config_json.get("hidden_size")
    if family.model_type not in ("qwen2", "llama") or not heads or not width:
        return {}
    return {"num_key_value_heads": heads, "head_dim": width // heads}


# ours -> theirs, of each kind of scaling
_ROPE_NAMES = {
    RopeScaling.none: {},
    RopeScaling.yarn: {
        "factor": "factor",
        "original_max_positions": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
    },
    RopeScaling.llama3: {
        "factor": "factor",
        "original_max_positions": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
}
_ROPE_TYPES = {
    "default": RopeScaling.none,
    "yarn": RopeScaling.yarn,
    "llama3": RopeScaling.llama3,
}


def _rope_config(config_json: Json, where: str) -> RopeConfig:
    """Out of `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    key = "rope_parameters" if config_json.get("rope_parameters") else "rope_scaling"
    rope = config_json.get(key, {})
    if not isinstance(rope, dict):
        raise ConfigError(f"{where}: {key} = {rope!r} is no JSON object")
    stated = {k: v for k, v in rope.items() if v is not None}
    theta = stated.pop("rope_theta", config_json.get("rope_theta", 10_000.0))
    old_type = stated.pop("type", "default")
    rope_type = stated.pop("rope_type", old_type)
    if not isinstance(rope_type, str) or rope_type not in _ROPE_TYPES:
        raise ConfigError(
            f"{where}: {key}.rope_type = {rope_type!r} is not supported. Supported are "
            f"{', '.join(_ROPE_TYPES)}"
        )
    scaling = _ROPE_TYPES[rope_type]
    names = _ROPE_NAMES[scaling]
    for theirs, value in (("partial_rotary_factor", 1.0), ("truncate", True)):
        _check(where, f"{key}.{theirs}", stated.pop(theirs, value), value)
    _check(where, "partial_rotary_factor", config_json.get("partial_rotary_factor", 1.0), 1.0)
    unknown = sorted(set(stated) - set(names.values()))
    if unknown:
        raise ConfigError(
            f"{where}: {key}.{unknown[0]} = {stated[unknown[0]]!r} is not supported with rope type "
            f"{rope_type!r}. Supported are {', '.join(names.values()) or 'none'}"
        )
    stated.setdefault("original_max_position_embeddings", config_json["max_position_embeddings"])
    for theirs in {"factor", "low_freq_factor", "high_freq_factor"} & set(names.values()):
        if theirs not in stated:
            raise ConfigError(f"{where}: {key} lacks {theirs}, which rope type {rope_type!r} needs")
    if scaling is RopeScaling.yarn and not (stated.get("mscale") and stated.get("mscale_all_dim")):
        # As transformers has it: the paper's magnitude of cos and sin unless both are given.
        _check(where, f"{key}.mscale_all_dim", stated.get("mscale_all_dim", 0.0), 0.0)
        stated |= {"mscale": 1.0, "mscale_all_dim": 0.0}
    fields = {ours: stated[theirs] for ours, theirs in names.items() if theirs in stated}
    for ours, value in {"theta": theta, **fields}.items():
        if not _is_number(value):
            theirs = names.get(ours, "rope_theta")
            raise ConfigError(f"{where}: {key}: {theirs} = {value!r} is no number")
    return RopeConfig(theta=theta, scaling=scaling, **fields)


def _rope_scaling(rope: RopeConfig) -> Json | None:
    if rope.scaling is RopeScaling.none:
        return None
    names = _ROPE_NAMES[rope.scaling]
    if rope.scaling is RopeScaling.yarn and rope.mscale_all_dim == 0:
        names = {ours: theirs for ours, theirs in names.items() if not ours.startswith("mscale")}
    fields = {theirs: getattr(rope, ours) for ours, theirs in names.items()}
    return {"rope_type": rope.scaling.value, **fields}


def _check(where: str, key: str, value: Any, supported: Any) -> None:
    if value != supported:
        raise ConfigError(f"{where}: {key} = {value!r} is not supported, only {supported!r} is")
