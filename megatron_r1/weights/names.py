"""Which Hugging Face tensors make up which Megatron-Core parameter: one table per family.

Hugging Face's names are those of the safetensors files on its hub, in which every expert has
tensors of its own; Megatron's are global: layers and experts are counted over the whole model.
Import, export and weight publishing read these tables and nothing else.

    D model width   F FFN width   V vocabulary   E experts   H heads   G key heads   K head width
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from megatron_r1.config.model import (
    DeepseekV3Config,
    GroupedQueryConfig,
    Head,
    MixtureConfig,
    ModelConfig,
)
from megatron_r1.errors import CheckpointError, ConfigError

Shape = tuple[int, ...]


class Form(Enum):
    """How Hugging Face tensors make up a Megatron one."""

    same = "same"
    """One tensor, element for element."""
    vocab = "vocab"
    """The same, but Megatron's may end in padding rows (see `padded_vocab_size`)."""
    rows = "rows"
    """Concatenated along dim 0: gate, then up."""
    qkv = "qkv"
    """q, k and v, by key group: the group's query heads, its key head, its value head."""


@dataclass(frozen=True)
class NameMapping:
    """One Megatron parameter (or expert-bias buffer) and the tensors that it is made of."""

    megatron: str
    """Such as decoder.layers.3.mlp.experts.local_experts.17.linear_fc1.weight."""
    hf: tuple[str, ...]
    """Such as model.layers.3.mlp.experts.17.gate_proj.weight and ...up_proj.weight."""
    shapes: tuple[Shape, ...]
    """Of the Hugging Face tensors."""
    form: Form = Form.same
    dtype: torch.dtype | None = None
    """In files, whatever the model's; None: the model's."""
    copies: tuple[str, ...] = ()
    """Names under which files hold the (single) tensor again; reading may leave them out."""

    @property
    def megatron_shape(self) -> Shape:
        """Shape of the whole parameter, without padding of the vocabulary."""
        return (sum(shape[0] for shape in self.shapes), *self.shapes[0][1:])


def name_table(config: ModelConfig, head: Head = Head.vocabulary) -> list[NameMapping]:
    """Every parameter and expert bias of the model once, in the order of Hugging Face's files.

    With tied embeddings the vocabulary's head is the embedding and has no row. A scalar head is
    that of Hugging Face's sequence classifiers with one label.

    Raises:
        ConfigError: prediction layers in a family that has no names for them.
    """
    vocab_shape, width = (config.vocab_size, config.hidden_size), config.hidden_size
    if config.num_mtp_layers and not isinstance(config, DeepseekV3Config):
        raise ConfigError(
            f"model.num_mtp_layers = {config.num_mtp_layers}, and of the Hugging Face "
            "architectures only DeepseekV3ForCausalLM has names for prediction layers. Set it to 0"
        )
    mtp_layers = [f"model.layers.{config.num_layers + i}" for i in range(config.num_mtp_layers)]
    table = [
        NameMapping(
            "embedding.word_embeddings.weight",
            ("model.embed_tokens.weight",),
            (vocab_shape,),
            Form.vocab,
            copies=tuple(f"{layer}.embed_tokens.weight" for layer in mtp_layers),
        )
    ]
    for i in range(config.num_layers):
        ours, theirs = f"decoder.layers.{i}", f"model.layers.{i}"
        table += _layer(config, ours, theirs, sparse=_is_sparse(config, i))
    table.append(_same("decoder.final_layernorm.weight", "model.norm.weight", width))
    if head is Head.scalar:
        table.append(_same("score.weight", "score.weight", 1, width))
    elif not config.tie_embeddings:
        table.append(
            NameMapping(
                "output_layer.weight",
                ("lm_head.weight",),
                (vocab_shape,),
                Form.vocab,
                copies=tuple(f"{layer}.shared_head.head.weight" for layer in mtp_layers),
            )
        )
    for i, theirs in enumerate(mtp_layers):
        table += _mtp_layer(config, f"mtp.layers.{i}", theirs)
    return table


def to_megatron(mapping: NameMapping, hf_tensors: Sequence[Tensor], config: ModelConfig) -> Tensor:
    """Put Hugging Face tensors, in the order of `mapping.hf`, together; a view where they are one.

    Raises:
        CheckpointError: a tensor does not have the configured shape; names it and both shapes.
    """
    for name, tensor, shape in zip(mapping.hf, hf_tensors, mapping.shapes, strict=True):
        _check_shape(name, tensor, shape)
    if mapping.form is Form.rows:
        return torch.cat(tuple(hf_tensors))
    if mapping.form is Form.qkv:
        groups = _num_key_groups(config)
        by_group = [tensor.unflatten(0, (groups, -1)) for tensor in hf_tensors]
        return torch.cat(by_group, dim=1).flatten(0, 1)
    return hf_tensors[0]


def to_hf(mapping: NameMapping, tensor: Tensor, config: ModelConfig) -> tuple[Tensor, ...]:
    """The Hugging Face tensors of a whole Megatron parameter, or of its gradient.

    The inverse of `to_megatron`; views, but for q, k and v of several groups.

    Raises:
        CheckpointError: the parameter does not have the configured shape.
    """
    if mapping.form is Form.vocab:
        tensor = tensor[: config.vocab_size]
    _check_shape(mapping.megatron, tensor, mapping.megatron_shape)
    shapes, numbers = mapping.shapes, range(len(mapping.hf))
    return tuple(shard_to_hf(mapping, number, tensor, shapes, config) for number in numbers)


def shard_to_hf(
    mapping: NameMapping, number: int, shard: Tensor, shapes: Sequence[Shape], config: ModelConfig
) -> Tensor:
    """The slice of a Hugging Face tensor that a rank's shard of the parameter holds: a view, or,
    for q, k and v of several groups, a copy. It is one slice, because Megatron splits key groups,
    gate and up each by themselves.

    Args:
        number: of the tensor, among those of `mapping`.
        shapes: of the parts of all of them.
    """
    if mapping.form is Form.rows:
        return shard.split([shape[0] for shape in shapes])[number]
    if mapping.form is Form.qkv:
        assert isinstance(config, GroupedQueryConfig), mapping.megatron
        groups = shapes[1][0] // config.head_dim
        by_group = shard.unflatten(0, (groups, -1))
        parts = by_group.split([shape[0] // groups for shape in shapes], dim=1)
        return parts[number].flatten(0, 1)
    return shard[: shapes[0][0]]


def _layer(config: ModelConfig, ours: str, theirs: str, *, sparse: bool) -> Iterator[NameMapping]:
    """A transformer layer."""
    width = config.hidden_size
    yield _same(f"{ours}.input_layernorm.weight", f"{theirs}.input_layernorm.weight", width)
    if isinstance(config, DeepseekV3Config):
        yield from _latent_attention(config, f"{ours}.self_attention", f"{theirs}.self_attn")
    else:
        yield from _grouped_query_attention(config, f"{ours}.self_attention", f"{theirs}.self_attn")
    yield _same(
        f"{ours}.pre_mlp_layernorm.weight", f"{theirs}.post_attention_layernorm.weight", width
    )
    if sparse:
        yield from _experts(config, f"{ours}.mlp", f"{theirs}.mlp")
    else:
        yield from _swiglu(f"{ours}.mlp", f"{theirs}.mlp", width, config.ffn_hidden_size)


def _grouped_query_attention(config: ModelConfig, ours: str, theirs: str) -> Iterator[NameMapping]:
    assert isinstance(config, GroupedQueryConfig), f"no names for {type(config).__name__}"
    width, head_dim = config.hidden_size, config.head_dim
    q_rows, kv_rows = config.num_attention_heads * head_dim, config.num_kv_heads * head_dim
    for kind, columns in (("weight", (width,)), *([("bias", ())] if config.qkv_bias else [])):
        yield NameMapping(
            f"{ours}.linear_qkv.{kind}",
            tuple(f"{theirs}.{part}_proj.{kind}" for part in "qkv"),
            ((q_rows, *columns), (kv_rows, *columns), (kv_rows, *columns)),
            Form.qkv,
        )
    if config.qk_norm:
        yield _same(f"{ours}.q_layernorm.weight", f"{theirs}.q_norm.weight", head_dim)
        yield _same(f"{ours}.k_layernorm.weight", f"{theirs}.k_norm.weight", head_dim)
    yield _same(f"{ours}.linear_proj.weight", f"{theirs}.o_proj.weight", width, q_rows)


def _latent_attention(config: DeepseekV3Config, ours: str, theirs: str) -> Iterator[NameMapping]:
    width, heads, latent = config.hidden_size, config.num_attention_heads, config.kv_lora_rank
    q_rows = heads * (config.qk_nope_head_dim + config.qk_rope_head_dim)
    kv_rows = heads * (config.qk_nope_head_dim + config.v_head_dim)
    rank = config.q_lora_rank
    if rank is None:
        yield _same(f"{ours}.linear_q_proj.weight", f"{theirs}.q_proj.weight", q_rows, width)
    else:
        yield _same(f"{ours}.linear_q_down_proj.weight", f"{theirs}.q_a_proj.weight", rank, width)
        yield _same(f"{ours}.q_layernorm.weight", f"{theirs}.q_a_layernorm.weight", rank)
        yield _same(f"{ours}.linear_q_up_proj.weight", f"{theirs}.q_b_proj.weight", q_rows, rank)
    yield _same(
        f"{ours}.linear_kv_down_proj.weight",
        f"{theirs}.kv_a_proj_with_mqa.weight",
        latent + config.qk_rope_head_dim,
        width,
    )
    yield _same(f"{ours}.kv_layernorm.weight", f"{theirs}.kv_a_layernorm.weight", latent)
    yield _same(f"{ours}.linear_kv_up_proj.weight", f"{theirs}.kv_b_proj.weight", kv_rows, latent)
    out_columns = heads * config.v_head_dim
    yield _same(f"{ours}.linear_proj.weight", f"{theirs}.o_proj.weight", width, out_columns)


def _swiglu(ours: str, theirs: str, width: int, ffn: int) -> Iterator[NameMapping]:
    yield NameMapping(
        f"{ours}.linear_fc1.weight",
        (f"{theirs}.gate_proj.weight", f"{theirs}.up_proj.weight"),
        ((ffn, width), (ffn, width)),
        Form.rows,
    )
    yield _same(f"{ours}.linear_fc2.weight", f"{theirs}.down_proj.weight", width, ffn)


def _experts(config: ModelConfig, ours: str, theirs: str) -> Iterator[NameMapping]:
    assert isinstance(config, MixtureConfig), f"{type(config).__name__} has no experts"
    width, num_experts, ffn = config.hidden_size, config.num_experts, config.moe_ffn_hidden_size
    yield _same(f"{ours}.router.weight", f"{theirs}.gate.weight", num_experts, width)
    if isinstance(config, DeepseekV3Config):
        yield NameMapping(
            f"{ours}.router.expert_bias",
            (f"{theirs}.gate.e_score_correction_bias",),
            ((num_experts,),),
            dtype=torch.float32,
        )
    for i in range(num_experts):
        yield from _swiglu(f"{ours}.experts.local_experts.{i}", f"{theirs}.experts.{i}", width, ffn)
    if isinstance(config, DeepseekV3Config) and config.num_shared_experts:
        shared = config.num_shared_experts * ffn
        yield from _swiglu(f"{ours}.shared_experts", f"{theirs}.shared_experts", width, shared)


def _mtp_layer(config: ModelConfig, ours: str, theirs: str) -> Iterator[NameMapping]:
    """Multi-token prediction (V3 report section 2.2): a layer behind the last, with its own norms.

    Both sides project the normalised embedding, then the normalised hidden state, side by side.
    """
    width = config.hidden_size
    yield _same(f"{ours}.enorm.weight", f"{theirs}.enorm.weight", width)
    yield _same(f"{ours}.hnorm.weight", f"{theirs}.hnorm.weight", width)
    yield _same(f"{ours}.eh_proj.weight", f"{theirs}.eh_proj.weight", width, 2 * width)
    yield from _layer(config, f"{ours}.transformer_layer", theirs, sparse=True)
    yield _same(f"{ours}.final_layernorm.weight", f"{theirs}.shared_head.norm.weight", width)


def _same(ours: str, theirs: str, *shape: int) -> NameMapping:
    return NameMapping(ours, (theirs,), (shape,))


def _is_sparse(config: ModelConfig, layer: int) -> bool:
    return isinstance(config, MixtureConfig) and layer >= config.num_dense_layers


def _num_key_groups(config: ModelConfig) -> int:
    assert isinstance(config, GroupedQueryConfig), f"{type(config).__name__} has no key groups"
    return config.num_kv_heads


def _check_shape(name: str, tensor: Tensor, shape: Shape) -> None:
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{name} has shape {list(tensor.shape)}, and the model's configuration makes it "
            f"{list(shape)}. Weights and configuration belong to different models"
        )
