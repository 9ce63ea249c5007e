"""Rotary embedding: rotations by hand, and YaRN's frequencies against its formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from megatron_r1.config.model import RopeConfig, RopeScaling
from megatron_r1.models.rope import RopeTable, rotate
from megatron_r1.platform.host import prepare

TINY_V3 = dict(factor=4.0, original_max_positions=128)
DEEPSEEK_V3 = dict(factor=40.0, original_max_positions=4096)
LLAMA_3_1 = RopeConfig(
    theta=500_000.0, scaling=RopeScaling.llama3, factor=8.0, original_max_positions=8192
)


@pytest.fixture(scope="module", autouse=True)
def platform() -> None:
    """Megatron-Core's YaRN asks for the current device."""
    prepare()


def yarn(**fields: float) -> RopeConfig:
    return RopeConfig(scaling=RopeScaling.yarn, **fields)


def table_of(config: RopeConfig, dim: int) -> RopeTable:
    return RopeTable(config, dim=dim, max_positions=512, device=torch.device("cpu"))


def frequencies_of(config: RopeConfig, dim: int) -> Tensor:
    """Radians per position: the angles of position 1, all of which lie below a quarter turn."""
    cos_1K, sin_1K = table_of(config, dim).at(torch.tensor([1]))
    return torch.atan2(sin_1K, cos_1K)[0]


def yarn_by_formula(dim: int, *, factor: float, original_max_positions: int) -> Tensor:
    """arXiv:2309.00071 section 3.2: pair i turns L theta_i / (2 pi) times in a context of L tokens.

    Pairs of 32 turns or more keep their frequency, pairs of 1 turn or less are slowed by the
    factor; in between a ramp in i. As DeepSeek-V3 does it, the ramp's ends are whole pairs.
    """

    def pair_of(turns: float) -> float:
        return dim / 2 * math.log(original_max_positions / (2 * math.pi * turns)) / math.log(10_000)

    low, high = max(math.floor(pair_of(32)), 0), min(math.ceil(pair_of(1)), dim - 1)
    frequencies = []
    for i in range(dim // 2):
        plain = 10_000 ** (-2 * i / dim)
        slowed = min(max((i - low) / (high - low), 0.0), 1.0)
        frequencies.append(slowed * plain / factor + (1 - slowed) * plain)
    return torch.tensor(frequencies)


def test_two_pairs_by_hand():
    x = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    cos, sin = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])  # 90 degrees, and none
    # Pairs (1, 2) and (3, 4): (1, 2) becomes (-2, 1).
    assert rotate(x, cos, sin, interleaved=True).flatten().tolist() == [-2, 1, 3, 4]
    # Pairs (1, 3) and (2, 4): (1, 3) becomes (-3, 1).
    assert rotate(x, cos, sin, interleaved=False).flatten().tolist() == [-3, 2, 1, 4]


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(
    "config", [RopeConfig(), yarn(**TINY_V3), LLAMA_3_1], ids=["plain", "yarn", "llama3"]
)
def test_a_dot_product_depends_on_the_distance_alone(config, interleaved):
    generator = torch.Generator().manual_seed(0)
    q, k = torch.randn(2, 1, 1, 16, generator=generator)
    table = table_of(config, dim=16)

    def dot(q_position: int, k_position: int) -> float:
        q_at, k_at = (
            rotate(x, *table.at(torch.tensor([position])), interleaved=interleaved)
            for x, position in ((q, q_position), (k, k_position))
        )
        return float((q_at * k_at).sum())

    assert dot(10, 3) == pytest.approx(dot(407, 400), abs=2e-4)  # angles of 400 radians in float32
    assert abs(dot(10, 3) - dot(10, 4)) > 0.1
    assert dot(5, 5) == pytest.approx(float((q * k).sum()), abs=1e-5)


def test_plain_frequencies():
    # 10,000^(-2i / 8)
    expected = torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(frequencies_of(RopeConfig(), dim=8), expected)


@pytest.mark.parametrize(("dim", "fields"), [(16, TINY_V3), (64, DEEPSEEK_V3)])
def test_yarn_follows_its_formula(dim, fields):
    frequencies = frequencies_of(yarn(**fields), dim)
    torch.testing.assert_close(frequencies, yarn_by_formula(dim, **fields), rtol=1e-5, atol=1e-9)


def test_yarn_of_deepseek_v3_stretches_pairs_11_to_22_in_part():
    # 32 ln(4096 / 64 pi) / ln 10,000 = 10.5 and 32 ln(4096 / 2 pi) / ln 10,000 = 22.5
    stretch = frequencies_of(RopeConfig(), dim=64) / frequencies_of(yarn(**DEEPSEEK_V3), dim=64)
    torch.testing.assert_close(stretch[:11], torch.ones(11))
    torch.testing.assert_close(stretch[23:], torch.full((9,), 40.0))
    assert all(1 < a < b < 40 for a, b in zip(stretch[11:22], stretch[12:23], strict=True))


def test_llama_3_1_slows_the_pairs_of_long_waves():
    # Pair i of heads of 128 turns 8192 / 2 pi x 500,000^(-i / 64) times in 8192 tokens: pair 28
    # 4.19 times, above 4; pair 29 3.41 times, pair 34 1.22; pair 35 0.9969 times, below 1.
    plain = frequencies_of(RopeConfig(theta=500_000.0), dim=128)
    stretch = plain / frequencies_of(LLAMA_3_1, dim=128)
    torch.testing.assert_close(stretch[:29], torch.ones(29))
    torch.testing.assert_close(stretch[35:], torch.full((29,), 8.0))
    # Pair 29 keeps (3.4109 - 1) / 3 = 0.80363: 1 / (0.80363 + 0.19637 / 8) = 1.2075
    assert float(stretch[29]) == pytest.approx(1.2075, abs=1e-4)


def test_llama_3_1_agrees_with_hugging_face():
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    config = LlamaConfig(
        hidden_size=4096,
        num_attention_heads=32,
        max_position_embeddings=131072,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    theirs = LlamaRotaryEmbedding(config)
    frequencies = frequencies_of(LLAMA_3_1, dim=128)
    torch.testing.assert_close(frequencies, theirs.inv_freq, rtol=1e-5, atol=1e-9)
    assert theirs.attention_scaling == 1.0


def test_the_papers_yarn_agrees_with_hugging_face():
    # Qwen's: no mscale, so cos and sin are multiplied by 0.1 ln 4 + 1 = 1.13863.
    from transformers import Qwen2Config
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RotaryEmbedding

    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}
    config = Qwen2Config(hidden_size=128, num_attention_heads=4, rope_parameters=rope)
    theirs = Qwen2RotaryEmbedding(config)
    cos_1K, sin_1K = table_of(yarn(mscale_all_dim=0.0, **TINY_V3), dim=32).at(torch.tensor([1]))
    torch.testing.assert_close(torch.atan2(sin_1K, cos_1K)[0], theirs.inv_freq, rtol=1e-5, atol=0)
    magnitude = torch.hypot(cos_1K, sin_1K)
    torch.testing.assert_close(magnitude, torch.full((1, 16), 1.13863), rtol=0, atol=1e-5)
    assert theirs.attention_scaling == pytest.approx(1.13863, abs=1e-5)


def test_magnitude_of_cos_and_sin():
    # DeepSeek-V3's mscale and mscale_all_dim are equal: 1. In general their ratio, with
    # 0.1 x 0.5 x ln 4 + 1 = 1.06931 over 0.1 x 1 x ln 4 + 1 = 1.13863.
    start = torch.tensor([0])
    equal_1K, _ = table_of(yarn(**TINY_V3), dim=16).at(start)
    halved_1K, _ = table_of(yarn(mscale=0.5, **TINY_V3), dim=16).at(start)
    torch.testing.assert_close(equal_1K, torch.ones(1, 8))
    torch.testing.assert_close(halved_1K, torch.full((1, 8), 1.06931 / 1.13863), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("dim", "fields"), [(16, TINY_V3), (64, DEEPSEEK_V3)])
def test_yarn_agrees_with_hugging_face(dim, fields):
    from transformers import DeepseekV3Config
    from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3RotaryEmbedding

    config = DeepseekV3Config(
        qk_rope_head_dim=dim,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 10_000.0,
            "factor": fields["factor"],
            "original_max_position_embeddings": fields["original_max_positions"],
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
        },
    )
    theirs = DeepseekV3RotaryEmbedding(config)
    frequencies = frequencies_of(yarn(**fields), dim)
    torch.testing.assert_close(frequencies, theirs.inv_freq, rtol=1e-5, atol=1e-9)
    assert theirs.attention_scaling == 1.0
