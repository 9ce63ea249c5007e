"""What ranks of SGLang's layouts need of DeepSeek-V3 and Qwen2.5, by hand."""

from __future__ import annotations

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.weights.boxes import slices
from megatron_r1.weights.engine_layout import EngineLayout, Receive

MODELS = {name: load_config([f"model={name}"]).model for name in ("deepseek_v3", "qwen2.5_7b")}


def spans(engine: EngineLayout, model: str, name: str, *shape: int) -> dict[int, list[int]]:
    """Rank -> where its slice begins and ends along the dim that is split."""
    wants = engine.wants(f"model.layers.5.{name}.weight", shape, MODELS[model])
    boxes = slices(wants.split, shape)
    return {
        rank: list(box[wants.split.dim])
        for box, receivers in zip(boxes, wants.receivers, strict=True)
        for rank in receivers
    }


def test_attention_replicas_share_heads_among_fewer_ranks():
    # Four ranks, two replicas: ranks 0 and 1 attend for one, 2 and 3 for the other.
    engine = EngineLayout(tensor=4, expert=2, attention_replicas=2, receive=Receive.part)
    halves = {0: [0, 64], 1: [64, 128], 2: [0, 64], 3: [64, 128]}
    o_proj = spans(engine, "deepseek_v3", "self_attn.o_proj", 7168, 128)
    assert o_proj == spans(engine, "deepseek_v3", "self_attn.q_b_proj", 128, 1536) == halves
    latent = spans(engine, "deepseek_v3", "self_attn.kv_a_proj_with_mqa", 576, 7168)
    assert latent == dict.fromkeys(range(4), [0, 576])
    # Dense blocks and the head are shared by all four, the embedding by a replica's two.
    quarters = {r: [512 * r, 512 * (r + 1)] for r in range(4)}
    assert spans(engine, "deepseek_v3", "mlp.gate_proj", 2048, 7168) == quarters
    assert spans(engine, "deepseek_v3", "mlp.shared_experts.down_proj", 7168, 2048) == quarters
    assert spans(engine, "deepseek_v3", "lm_head", 129280, 8)[3] == [96960, 129280]
    assert spans(engine, "deepseek_v3", "embed_tokens", 129280, 8)[3] == [64640, 129280]


def test_expert_groups():
    # Two groups of two ranks: experts 0 to 127 are on ranks 0 and 1, the others on 2 and 3.
    engine = EngineLayout(tensor=4, expert=2, receive=Receive.part)
    early = spans(engine, "deepseek_v3", "mlp.experts.127.up_proj", 2048, 7168)
    late = spans(engine, "deepseek_v3", "mlp.experts.128.down_proj", 7168, 2048)
    assert early == {0: [0, 1024], 1: [1024, 2048]}
    assert late == {2: [0, 1024], 3: [1024, 2048]}


def test_ranks_beyond_the_key_heads_share_them():
    # Qwen2.5-7B has 28 query and 4 key heads of 128; of 28 ranks, seven share a key head.
    engine = EngineLayout(tensor=28, receive=Receive.part)
    keys = spans(engine, "qwen2.5_7b", "self_attn.k_proj", 512, 3584)
    assert keys == {r: [r // 7 * 128, (r // 7 + 1) * 128] for r in range(28)}
    assert spans(engine, "qwen2.5_7b", "self_attn.q_proj", 3584, 3584)[27] == [3456, 3584]


def test_the_vocabulary_is_padded_to_64_before_it_is_shared_out():
    # 509 -> 512: the last of four ranks has three rows less. 130 -> 192, a multiple of three.
    engine = EngineLayout(tensor=4, receive=Receive.part)
    assert spans(engine, "deepseek_v3", "lm_head", 509, 8)[3] == [384, 509]
    three = EngineLayout(tensor=3, receive=Receive.part)
    assert spans(three, "deepseek_v3", "lm_head", 130, 8) == {
        0: [0, 64],
        1: [64, 128],
        2: [128, 130],
    }
    # 64 is no multiple of three, so the multiple becomes 192.
    assert spans(three, "deepseek_v3", "lm_head", 60, 8) == {0: [0, 60], 1: [60, 60], 2: [60, 60]}


@pytest.mark.parametrize("name", ["mlp.experts.9.up_proj", "lm_head", "self_attn.o_proj"])
def test_a_broadcast_brings_everything_to_everyone(name):
    engine = EngineLayout(tensor=4, expert=4, attention_replicas=2)
    assert spans(engine, "deepseek_v3", name, 64, 64) == dict.fromkeys(range(4), [0, 64])
