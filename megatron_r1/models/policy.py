"""A model of Megatron-Core on this rank: built, initialised, and run over token streams."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.utils import get_attr_wrapped_model
from torch import Tensor

from megatron_r1.algos.logprobs import next_tokens
from megatron_r1.config.model import DeepseekV3Config, Head, ModelConfig
from megatron_r1.config.precision import DType, PrecisionConfig
from megatron_r1.models.attention import StreamLatentAttention
from megatron_r1.models.heads import HEAD_PREFIX, ValueModel
from megatron_r1.models.init import chunk_state_dict, initialize_weights
from megatron_r1.models.kv_cache import KvCache
from megatron_r1.models.moe import number_routers
from megatron_r1.models.mtp import StreamModel
from megatron_r1.models.packed_attention import Heads
from megatron_r1.models.precision import Installed, layer_parts, plain_name
from megatron_r1.models.rope import RopeTable
from megatron_r1.models.specs import block_spec, prediction_spec, transformer_config
from megatron_r1.models.stream import TokenStream
from megatron_r1.parallel.context import ContextShard
from megatron_r1.parallel.layout import Layout
from megatron_r1.parallel.pipeline_split import chunk_starts, layers_per_chunk
from megatron_r1.platform.host import Host
from megatron_r1.types import MicroBatch

_DTYPES = {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}

_EXTRA_STATE = "._extra_state"


class Policy:
    """One rank's part of a model in one layout: a language model, or one with a scalar head."""

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        precision: PrecisionConfig,
        host: Host,
        *,
        seed: int,
        head: Head = Head.vocabulary,
    ) -> None:
        """Build this rank's part, with weights drawn from `seed`, the same in every layout; on the
        meta device without weights. Prediction layers, which end in logits too, go with a
        vocabulary alone."""
        self.head = head
        if head is Head.scalar:
            config = dataclasses.replace(config, num_mtp_layers=0)
        self.config = config
        self.layout = layout
        self.host = host
        self.precision = precision
        self.dtype = _DTYPES[precision.dtype]
        heads = Heads.of(config, layout.config)
        self.parts = layer_parts(precision, Installed.on(host.device), heads)
        self.megatron_config = transformer_config(
            config,
            layout.config,
            self.dtype,
            precision,
            grouped_experts=self.parts.grouped is not None,
        )
        self.megatron_config.perform_initialization = False
        # Elsewhere Megatron would build on a GPU, whatever device it is to be.
        self.megatron_config.use_cpu_initialization = not host.is_cuda
        self._layers_per_chunk = layers_per_chunk(config, layout.config)
        self._chunk_starts = chunk_starts(self._layers_per_chunk)
        with host.device:
            self.chunks = [
                self._build_chunk(number).to(host.device)
                for number in range(layout.config.virtual_pipeline)
            ]
        for number, chunk in enumerate(self.chunks):
            number_routers(chunk, first_layer=self._chunk_starts[self._place(number)])
            _mark_sharded_weights(chunk)
            _separate_expert_gradients(chunk)
            if host.device.type != "meta":
                initialize_weights(chunk, config, seed=seed)
        self._rope = RopeTable(
            config.rope,
            dim=_rotary_dim(config),
            max_positions=config.max_positions,
            device=host.device,
        )

    def _build_chunk(self, number: int) -> StreamModel:
        """Chunk `number` of this stage; chunks go round the stages in the order of the model."""
        layout, place = self.layout, self._place(number)
        spec = block_spec(
            self.config,
            self.megatron_config,
            self.parts,
            first_layer=self._chunk_starts[place],
            num_layers=self._layers_per_chunk[place],
        )
        is_last = place == layout.config.num_chunks - 1
        is_value_model = self.head is Head.scalar
        return (ValueModel if is_value_model else StreamModel)(
            self.megatron_config,
            spec,
            vocab_size=padded_vocab_size(self.config.vocab_size, layout.tp.size),
            max_sequence_length=self.config.max_positions,
            pre_process=place == 0,
            post_process=is_last,
            position_embedding_type="none",
            share_embeddings_and_output_weights=self.config.tie_embeddings and not is_value_model,
            mtp_block_spec=(
                prediction_spec(self.config, self.megatron_config, self.parts) if is_last else None
            ),
            vp_stage=number if layout.config.virtual_pipeline > 1 else None,
        )

    def _place(self, number: int) -> int:
        """Where this stage's chunk `number` stands among all chunks of the pipeline."""
        return number * self.layout.pp.size + self.layout.pp.rank

    def named_parameters(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        """This rank's parameters, with layers numbered as in the whole model."""
        for number, chunk in enumerate(self.chunks):
            for name, parameter in chunk.named_parameters():
                yield self._global_name(number, name), parameter

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        """This rank's buffers, named in the same way."""
        for number, chunk in enumerate(self.chunks):
            for name, buffer in chunk.named_buffers():
                yield self._global_name(number, name), buffer

    def _global_name(self, number: int, name: str) -> str:
        name = plain_name(name)
        if not name.startswith("decoder.layers."):
            return name
        _, _, layer, rest = name.split(".", 3)
        return f"decoder.layers.{int(layer) + self._chunk_starts[self._place(number)]}.{rest}"

    def sharded_state_dict(self, *, without_head: bool = False) -> dict[str, Any]:
        """What Megatron's distributed checkpoints save and load, for each chunk of this rank; the
        body alone where a scalar head is to stay as it is.

        Megatron's linears and Transformer Engine's describe an extra state of their own each, empty
        or a history of scales that block-wise FP8 has no use for: it would be a file of a thousand
        bytes per expert, and is left out.
        """
        return {
            f"chunk{number}": {
                name: shard
                for name, shard in chunk_state_dict(chunk).items()
                if not name.endswith(_EXTRA_STATE)
                and not (without_head and name.startswith(HEAD_PREFIX))
            }
            for number, chunk in enumerate(self.chunks)
        }

    def load_state_dict(self, loaded: dict[str, Any]) -> None:
        """Take what was loaded into a `sharded_state_dict`."""
        for number, chunk in enumerate(self.chunks):
            own = chunk.state_dict()
            head = {name: own[name] for name in own if name.startswith(HEAD_PREFIX)}
            extra = (name for name in own if name.endswith(_EXTRA_STATE))
            chunk.load_state_dict({**head, **loaded[f"chunk{number}"], **dict.fromkeys(extra)})

    @property
    def stream_multiple(self) -> int:
        """The length of a stream is a multiple of this."""
        return self.layout.config.stream_multiple(self.precision)

    def training_stream(
        self,
        micro: MicroBatch,
        num_sequences: int,
        *,
        with_mtp: bool = False,
        wants_hidden: bool = False,
    ) -> TokenStream:
        """What this rank holds of a micro-batch, in a step of `num_sequences` rows.

        `with_mtp` has the prediction layers run, too; `wants_hidden` gives hidden states in place
        of logits.
        """
        context = None
        if self.layout.cp.size > 1:
            context = ContextShard.of(
                micro.seq_lengths,
                self.layout.cp,
                pad_to_multiple=self.stream_multiple,
                device=micro.tokens_T.device,
            )
        stream = TokenStream(
            seq_lengths=micro.seq_lengths,
            num_padding=micro.num_padding,
            balance_scale=1.0 / num_sequences,
            context=context,
            wants_hidden=wants_hidden,
        )
        stream.positions_T = stream.take(micro.positions_T, fill=0)
        if micro.routed_experts_TMK is not None:
            stream.routed_experts_TMK = stream.take(micro.routed_experts_TMK, fill=-1)
        if with_mtp:
            ahead = tokens_ahead(micro, self.config.num_mtp_layers)
            stream.tokens_ahead_KT = torch.stack([stream.take(row_T, fill=0) for row_T in ahead])
        return stream

    def forward(
        self,
        tokens_T: Tensor,
        stream: TokenStream,
        *,
        chunk: torch.nn.Module | None = None,
        gather_vocab: bool = False,
    ) -> Tensor:
        """One pass through one chunk of this rank.

        Args:
            chunk: one of the policy's, or a wrapper around it (Megatron's DDP); None is the first,
                which without a pipeline is the whole model.
            gather_vocab: all columns of the vocabulary on every tensor rank.
        Returns:
            Of the model's last chunk logits, [T, v] or [T, V], padding columns included; hidden
            states, [T, D], for a stream that wants them; with a scalar head values, [T], float32.
            Of the chunks before it hidden states in Megatron's form, [T, 1, D].
        """
        chunk = self.chunks[0] if chunk is None else chunk
        stream.float32_head = self.precision.float32_head
        stream.rope_cos_TK, stream.rope_sin_TK = self._rope.at(stream.positions_T)
        output = chunk(
            tokens_T[None],
            stream.positions_T[None],
            None,
            packed_seq_params=stream,
            runtime_gather_output=gather_vocab,
        )
        return output[0] if get_attr_wrapped_model(chunk, "post_process") else output

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode without gradients, with the weights as they are now."""
        self.renew_fp8_weights()
        was_training = self.chunks[0].training
        self._train(False)
        try:
            with torch.no_grad():
                yield
        finally:
            self._train(was_training)

    def renew_fp8_weights(self) -> None:
        """Have the next pass make FP8 numbers of the weights again.

        Transformer Engine's linears keep them from one pass to the next until they are told that
        weights may have changed. Megatron's schedules tell them; a pass outside of those cannot.
        """
        for chunk in self.chunks:
            chunk.set_is_first_microbatch()

    def _train(self, mode: bool) -> None:
        for chunk in self.chunks:
            chunk.train(mode)

    def new_cache(self, *, num_rows: int, max_context: int) -> KvCache:
        """An empty cache for this stage's layers."""
        return KvCache(
            layer_numbers=[layer.layer_number for c in self.chunks for layer in c.decoder.layers],
            num_rows=num_rows,
            max_context=max_context,
            width=_cache_width(self.config, self.layout.tp.size),
            dtype=self.dtype,
            device=self.host.device,
        )


def tokens_ahead(micro: MicroBatch, num_layers: int) -> list[Tensor]:
    """For k = 1, 2, ...: the token k places further on in each token's sequence; 0 behind its end.

    A token of the next sequence would do no harm to the loss, which leaves these places out, but
    with it the load of experts would depend on what is packed together.
    """
    lengths = torch.tensor(micro.seq_lengths, device=micro.positions_T.device)
    left_T = lengths.repeat_interleave(lengths) - micro.positions_T
    return [
        next_tokens(micro.tokens_T, steps=k).masked_fill(left_T <= k, 0)
        for k in range(1, num_layers + 1)
    ]


def padded_vocab_size(vocab_size: int, tensor_ranks: int) -> int:
    """The vocabulary, rounded up to a multiple of the tensor ranks."""
    return -(-vocab_size // tensor_ranks) * tensor_ranks


def _rotary_dim(config: ModelConfig) -> int:
    return config.qk_rope_head_dim if isinstance(config, DeepseekV3Config) else config.head_dim


def _cache_width(config: ModelConfig, tensor_ranks: int) -> int:
    if isinstance(config, DeepseekV3Config):
        return config.kv_lora_rank + config.qk_rope_head_dim
    return 2 * config.num_kv_heads // tensor_ranks * config.head_dim


def _mark_sharded_weights(model: GPTModel) -> None:
    """Tell Megatron which weights are split over tensor ranks, so that a gradient norm counts each
    shard once and replicated weights once. Its own initialisation does that, and ours stands in."""
    for module in model.modules():
        if isinstance(module, ColumnParallelLinear | RowParallelLinear | VocabParallelEmbedding):
            if module.weight is not None:
                dim = 1 if isinstance(module, RowParallelLinear) else 0
                set_tensor_model_parallel_attributes(
                    module.weight, is_parallel=True, dim=dim, stride=1
                )
        elif isinstance(module, StreamLatentAttention):
            # Transformer Engine marks weights of all its linears, these whole ones, too.
            for name in ("linear_q_down_proj", "linear_kv_down_proj"):
                if hasattr(module, name):
                    getattr(module, name).weight.tensor_model_parallel = False


def _separate_expert_gradients(model: GPTModel) -> None:
    """Reduce expert gradients over the ranks that hold the same experts.

    Megatron's linears mark expert weights so only when expert parallelism is on. Without it, and
    with tensor ranks that each hold whole experts (expert_tensor < tensor), the experts' gradients,
    each from the rank's own part of the tokens, would never be added up over the tensor ranks.
    """
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False
