"""The tables of names: shapes by hand, exact inverses, published parameter counts."""

from __future__ import annotations

import dataclasses
import math
import time

import pytest
import torch
from torch import Tensor

from megatron_r1.config.load import load_config
from megatron_r1.config.model import ModelConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.weights.names import Form, NameMapping, name_table, to_hf, to_megatron

TINY = ["tiny_v3", "tiny_dense"]


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
