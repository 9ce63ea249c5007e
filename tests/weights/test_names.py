"""The tables of names: shapes by hand, exact inverses, published parameter counts."""

from __future__ import annotations

import dataclasses
import math
import time
from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from megatron_r1.config.load import CONF_DIR, load_config
from megatron_r1.config.model import Head, ModelConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.models.size import count_parameters
from megatron_r1.weights.names import Form, NameMapping, name_table, to_hf, to_megatron
from tests.models.families import FAMILIES, load_family

TINY = ["tiny_v3", "tiny_dense"]
# The sums of the hub's safetensors files; of DeepSeek-V3 without multi-token prediction and scales.
PUBLISHED = {
    "deepseek_v3": 671_026_404_352,
    "llama3.1_8b": 8_030_261_248,
    "llama3.1_70b": 70_553_706_496,
    "qwen2.5_0.5b": 494_032_768,
    "qwen2.5_1.5b": 1_543_714_304,
    "qwen2.5_3b": 3_085_938_688,
    "qwen2.5_7b": 7_615_616_512,
    "qwen2.5_14b": 14_770_033_664,
    "qwen2.5_32b": 32_763_876_352,
    "qwen2.5_72b": 72_706_203_648,
    "qwen2.5_math_1.5b": 1_543_714_304,
    "qwen2.5_math_7b": 7_615_616_512,
    "qwen3_0.6b": 596_049_920,
    "qwen3_1.7b": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_14b": 14_768_307_200,
    "qwen3_32b": 32_762_123_264,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    # Moonlight's paper (arXiv:2502.16982) has 15.29B and 2.24B without the two embeddings.
    "moonlight_16b_a3b": 15_289_019_904 + 2 * 163_840 * 2048,
}


def model_of(name: str, **changes) -> ModelConfig:
    return dataclasses.replace(load_config([f"model={name}"]).model, **changes)


def by_megatron_name(config: ModelConfig) -> dict[str, NameMapping]:
    return {mapping.megatron: mapping for mapping in name_table(config)}


def random_hf_tensors(mapping: NameMapping) -> list[Tensor]:
    return [torch.randn(shape) for shape in mapping.shapes]


@pytest.mark.parametrize("name", TINY)
def test_the_two_directions_are_exact_inverses(name):
    config = model_of(name)
    for mapping in name_table(config):
        theirs = random_hf_tensors(mapping)
        ours = to_megatron(mapping, theirs, config)
        assert ours.shape == mapping.megatron_shape
        back = to_hf(mapping, ours, config)
        assert len(back) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(back, theirs, strict=True)), mapping.megatron


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_name_is_there_once(family):
    """Which names there have to be, a policy and transformers say: see tests/checkpoint."""
    mtp_layers = 2 if family in ("deepseek_v3", "moonlight") else 0
    config = load_family(family, f"model.num_mtp_layers={mtp_layers}").model
    for head in Head:
        table = name_table(config, head)
        for names in (
            [mapping.megatron for mapping in table],
            [name for mapping in table for name in (*mapping.hf, *mapping.copies)],
        ):
            doubled = [name for name, count in Counter(names).items() if count > 1]
            assert not doubled, doubled


def num_weights(table: Iterable[NameMapping]) -> int:
    """Expert biases, the only tensors of a fixed type, are buffers."""
    return sum(math.prod(shape) for m in table if m.dtype is None for shape in m.shapes)


def test_every_published_model_has_its_published_number_of_weights():
    files = {file.stem for file in (CONF_DIR / "model").glob("*.yaml")}
    assert files - {name for name in files if name.startswith("tiny_")} == set(PUBLISHED)
    for name, published in PUBLISHED.items():
        config = model_of(name)
        assert num_weights(name_table(config)) == published, name
        assert count_parameters(config).total == published, name


@pytest.mark.parametrize(
    ("name", "active"),
    # Qwen3 report (arXiv:2505.09388): 22B and 3B; Moonlight: 2.24B and two embeddings.
    [
        ("qwen3_235b_a22b", 22.2e9),
        ("qwen3_30b_a3b", 3.35e9),
        ("moonlight_16b_a3b", 2.24e9 + 2 * 163_840 * 2048),
    ],
)
def test_active_weights_of_the_mixtures(name, active):
    assert count_parameters(model_of(name)).active == pytest.approx(active, rel=2e-3)


def test_qkv_rows_by_hand():
    # Two key groups of two query heads, heads of one row: q0 q1 k0 v0, then q2 q3 k1 v1.
    shape = dict(num_attention_heads=4, num_kv_heads=2, head_dim=1, hidden_size=1)
    config = model_of("tiny_dense", **shape)
    mapping = by_megatron_name(config)["decoder.layers.0.self_attention.linear_qkv.bias"]
    q, k, v = torch.tensor([0.0, 1, 2, 3]), torch.tensor([10.0, 11]), torch.tensor([20.0, 21])
    assert to_megatron(mapping, (q, k, v), config).tolist() == [0, 1, 10, 20, 2, 3, 11, 21]


def test_gate_comes_before_up():
    config = model_of("tiny_dense", ffn_hidden_size=1, hidden_size=2)
    mapping = by_megatron_name(config)["decoder.layers.3.mlp.linear_fc1.weight"]
    assert mapping.hf == (
        "model.layers.3.mlp.gate_proj.weight",
        "model.layers.3.mlp.up_proj.weight",
    )
    gate, up = torch.tensor([[1.0, 2]]), torch.tensor([[3.0, 4]])
    assert to_megatron(mapping, (gate, up), config).tolist() == [[1, 2], [3, 4]]


def test_padding_rows_of_the_vocabulary_stay_behind():
    config = model_of("tiny_dense", vocab_size=5)
    mapping = by_megatron_name(config)["embedding.word_embeddings.weight"]
    padded = torch.arange(8.0)[:, None].expand(8, config.hidden_size)
    (theirs,) = to_hf(mapping, padded, config)
    assert theirs[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_views_cost_no_memory():
    config = model_of("tiny_v3")
    for mapping in name_table(config):
        tensor = torch.empty(mapping.megatron_shape)
        storage = tensor.untyped_storage().data_ptr()
        assert all(
            part.untyped_storage().data_ptr() == storage for part in to_hf(mapping, tensor, config)
        )


@pytest.mark.parametrize("form", [Form.same, Form.rows, Form.qkv, Form.vocab])
def test_a_misshapen_tensor_is_named(form):
    config = model_of("tiny_dense")
    mapping = next(m for m in name_table(config) if m.form is form)
    tensors = random_hf_tensors(mapping)
    tensors[-1] = tensors[-1][:-1]
    rows = mapping.shapes[-1][0]
    with pytest.raises(CheckpointError) as caught:
        to_megatron(mapping, tensors, config)
    text = str(caught.value)
    assert mapping.hf[-1] in text and f"[{rows - 1}" in text and f"[{rows}" in text


def test_multi_token_prediction_adds_one_layer_and_copies_of_embedding_and_head():
    config = model_of("deepseek_v3")
    main, with_mtp = (
        by_megatron_name(dataclasses.replace(config, num_mtp_layers=n)) for n in (0, 1)
    )
    added = {name: m for name, m in with_mtp.items() if name not in main}
    # Attention, its two norms, 256 + 1 experts, router and bias; eh_proj and three norms.
    layer = 187_107_328 + 2 * 7168 + 257 * 3 * 7168 * 2048 + 256 * 7168 + 256
    own = layer + 2 * 7168**2 + 3 * 7168
    assert sum(math.prod(shape) for m in added.values() for shape in m.shapes) == own
    theirs = {name for m in added.values() for name in m.hf}
    assert all(name.startswith("model.layers.61.") for name in theirs)
    for name in ("enorm", "hnorm", "eh_proj", "shared_head.norm", "self_attn.q_a_proj"):
        assert f"model.layers.61.{name}.weight" in theirs
    assert with_mtp["embedding.word_embeddings.weight"].copies == (
        "model.layers.61.embed_tokens.weight",
    )
    assert with_mtp["output_layer.weight"].copies == ("model.layers.61.shared_head.head.weight",)
    assert "mtp.layers.0.transformer_layer.mlp.experts.local_experts.255.linear_fc2.weight" in added


def test_the_table_of_671_billion_parameters_takes_seconds_at_most():
    config = model_of("deepseek_v3")
    start = time.perf_counter()
    table = name_table(config)
    assert time.perf_counter() - start < 5  # 0.5 s on an idle core
    # 61 layers: norms and attention 9 each; 3 x 2 dense; 58 x (router 2 + experts 512 + shared 2).
    assert len(table) == 3 + 61 * 9 + 3 * 2 + 58 * 516
