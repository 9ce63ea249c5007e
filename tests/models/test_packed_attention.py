"""Whose attention is taken, and that Transformer Engine is handed what it asks for."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_r1.config.load import load_config
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.config.precision import AttentionBy, DType, Fp8, Parts, PrecisionConfig
from megatron_r1.errors import ConfigError
from megatron_r1.models.core_attention import PlainAttention
from megatron_r1.models.packed_attention import Heads, PackedAttention, fused_attention_problem
from megatron_r1.models.precision import Installed, layer_parts, packs_attention
from megatron_r1.models.specs import block_spec, prediction_spec, transformer_config
from tests.models.builders import stream_of
from tests.models.packed_stand_in import PackedStandIn

ENGINE = Installed(transformer_engine=True, apex=False, attention_problem=lambda heads: "")
UNFUSED = dataclasses.replace(ENGINE, attention_problem=lambda heads: f"none of {heads.key_width}")
"""As on an Ampere GPU."""
ABSENT = Installed(transformer_engine=False, apex=True, engine_problem="No module named 'te'")


def precision(fp8: Fp8 = Fp8.none, **more) -> PrecisionConfig:
    return PrecisionConfig(dtype=DType.bfloat16, fp8=fp8, **more)


HEADS = Heads(num_heads=16, num_groups=16, key_width=192, value_width=128)


def test_attention_is_transformer_engines_where_its_layers_are_and_it_has_a_fused_one():
    def packs(asked: PrecisionConfig, installed: Installed) -> bool:
        return packs_attention(asked, installed, HEADS)

    by_name = AttentionBy.transformer_engine
    assert packs(precision(), ENGINE) and packs(precision(Fp8.block), ENGINE)
    assert not packs(precision(attention=AttentionBy.plain), ENGINE)
    assert not packs(precision(Fp8.block_sim), ENGINE)
    assert packs(precision(Fp8.block_sim, attention=by_name), ENGINE)
    assert not packs(precision(), ABSENT)
    assert not packs(precision(), UNFUSED)
    assert not packs(PrecisionConfig(parts=Parts.transformer_engine), ENGINE)
    for installed, problem in ((ABSENT, "No module named"), (UNFUSED, "none of 192")):
        with pytest.raises(ConfigError, match=rf"\({problem}.*pip install.*attention=auto"):
            packs(precision(attention=by_name), installed)
    with pytest.raises(ConfigError, match="precision.dtype = float32.*attention=auto"):
        PrecisionConfig(attention=by_name)


@pytest.mark.megatron
@pytest.mark.parametrize("model", ["tiny_v3", "tiny_qwen3_moe", "tiny_dense"])
def test_every_layer_attends_by_what_was_chosen(model):
    overrides = [f"model={model}", "precision=fp8_block_sim"]
    if model == "tiny_v3":
        overrides.append("model.num_mtp_layers=1")
    config = load_config(overrides)
    heads = Heads.of(config.model, config.parallel)
    megatron = transformer_config(config.model, config.parallel, torch.float32, config.precision)

    def cores(attention: AttentionBy) -> set[type]:
        asked = dataclasses.replace(config.precision, attention=attention)
        parts = layer_parts(asked, ENGINE, heads)
        count = config.model.num_layers
        block = block_spec(config.model, megatron, parts, first_layer=0, num_layers=count)
        layers = block.layer_specs
        if (ahead := prediction_spec(config.model, megatron, parts)) is not None:
            layers += [layer.submodules.transformer_layer for layer in ahead.submodules.layer_specs]
        found = [layer.submodules.self_attention.submodules.core_attention for layer in layers]
        return {core.module if isinstance(core, ModuleSpec) else core for core in found}

    assert cores(AttentionBy.transformer_engine) == {PackedAttention}
    assert cores(AttentionBy.plain) == {PlainAttention}


@pytest.mark.parametrize(
    ("model", "layout", "heads"),
    [
        ("deepseek_v3", dict(tensor=8), (16, 16, 192, 128, 1)),
        ("qwen2.5_7b", dict(tensor=4, context=2), (7, 1, 128, 128, 2)),
    ],
)
def test_heads_of_a_rank(model, layout, heads):
    config = load_config([f"model={model}"])
    assert Heads.of(config.model, ParallelConfig(**layout)) == Heads(*heads)


ASKED = """
asked = []

class AttentionParams:
    def __init__(self, **named):
        self.__dict__ |= named

def get_attention_backend(params):
    asked.append(params)
    by_cudnn = params.head_dim_v <= 128 and not (params.is_training and params.max_seqlen_q > 9999)
    return params.head_dim_v == 64, None, by_cudnn, 1, True, [False, by_cudnn, True]
"""


@pytest.mark.skipif(torch.cuda.is_available(), reason="the real one may be here")
def test_transformer_engine_is_asked_for_a_fused_attention_of_all_that_will_be_run(packages):
    packages(
        **{"transformer_engine__pytorch__attention__dot_product_attention__utils": ASKED},
    )
    flash = dataclasses.replace(HEADS, value_width=64)
    assert fused_attention_problem(flash) == ""
    from transformer_engine.pytorch.attention.dot_product_attention.utils import asked

    told = {(a.is_training, a.max_seqlen_q, a.context_parallel, a.num_gqa_groups) for a in asked}
    assert told == {(t, n, False, 16) for t in (True, False) for n in (2, 32768)}
    assert "sequences of 32768 tokens in training" in fused_attention_problem(HEADS)
    wide = dataclasses.replace(HEADS, value_width=256, context_ranks=4)
    assert "256, 4 context ranks and packed sequences of 8 tokens" in fused_attention_problem(wide)


def packed_attention(*, num_groups: int, key_width: int, value_width: int) -> PackedAttention:
    """Of three heads for each group, by the stand-in."""
    config = TransformerConfig(
        num_layers=1,
        hidden_size=8,
        num_attention_heads=3 * num_groups,
        num_query_groups=num_groups,
        kv_channels=key_width,
    )
    return PackedAttention(
        attend=PackedStandIn,
        config=config,
        layer_number=1,
        attn_mask_type=AttnMaskType.causal,
        attention_type="self",
        k_channels=key_width,
        v_channels=value_width,
    )


@pytest.mark.parametrize("lengths", [(1,), (7, 1, 30, 29, 2), (5, 0, 4)])
@pytest.mark.parametrize(("key_width", "value_width"), [(16, 16), (24, 16)])
def test_a_packed_stream_is_attended_as_rectangles_are(lengths, key_width, value_width):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(sum(lengths), heads, width, generator=generator, dtype=torch.float64)
        for heads, width in ((6, key_width), (2, key_width), (2, value_width))
    )
    attend = packed_attention(num_groups=2, key_width=key_width, value_width=value_width)
    out = attend(q, k, v, stream_of(lengths))
    expected = PlainAttention()(q, k, v, stream_of(lengths))
    torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
