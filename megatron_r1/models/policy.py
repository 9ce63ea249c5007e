"""A model of Megatron-Core on this rank: built, initialised, and run over token streams."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import (
    ColumnParallelLinear,
    RowParallelLinear,
    VocabParallelEmbedding,
    set_tensor_model_parallel_attributes,
)
from megatron.core.transformer.transformer_block import get_num_layers_to_build
from megatron.core.transformer.transformer_layer import get_transformer_layer_offset
from torch import Tensor

from megatron_r1.config.model import DeepseekV3Config, ModelConfig
from megatron_r1.config.precision import DType, PrecisionConfig
from megatron_r1.models.init import initialize_weights
from megatron_r1.models.kv_cache import KvCache
from megatron_r1.models.rope import RopeTable
from megatron_r1.models.specs import block_spec, transformer_config
from megatron_r1.models.stream import TokenStream
from megatron_r1.parallel.layout import Layout
from megatron_r1.platform.host import Host

_DTYPES = {DType.float32: torch.float32, DType.bfloat16: torch.bfloat16}


class Policy:
    """One rank's part of a language model in one layout."""

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        precision: PrecisionConfig,
        host: Host,
        *,
        seed: int,
    ) -> None:
        """Build this rank's part, with weights drawn from `seed`, the same in every layout."""
        self.config = config
        self.layout = layout
        self.host = host
        self.dtype = _DTYPES[precision.dtype]
        self.megatron_config = transformer_config(config, layout.config, self.dtype)
        self.megatron_config.perform_initialization = False
        offset = get_transformer_layer_offset(self.megatron_config)
        num_layers = get_num_layers_to_build(self.megatron_config)
        self.layer_numbers = [offset + i + 1 for i in range(num_layers)]
        self.model = GPTModel(
            self.megatron_config,
            block_spec(config, self.megatron_config, first_layer=offset, num_layers=num_layers),
            vocab_size=padded_vocab_size(config.vocab_size, layout.tp.size),
            max_sequence_length=config.max_positions,
            pre_process=layout.is_first_stage,
            post_process=layout.is_last_stage,
            position_embedding_type="none",
            share_embeddings_and_output_weights=config.tie_embeddings,
        ).to(host.device)
        _mark_sharded_weights(self.model)
        _separate_expert_gradients(self.model)
        initialize_weights(self.model, config, seed=seed)
        self._rope = RopeTable(
            config.rope,
            dim=_rotary_dim(config),
            max_positions=config.max_positions,
            device=host.device,
        )

    @property
    def stream_multiple(self) -> int:
        """The length of a stream is a multiple of this."""
        return self.layout.tp.size if self.layout.config.sequence_parallel else 1

    def forward(
        self,
        tokens_T: Tensor,
        stream: TokenStream,
        *,
        model: torch.nn.Module | None = None,
        gather_vocab: bool = False,
    ) -> Tensor:
        """One pass through this pipeline stage.

        Args:
            model: a wrapper around the policy's module (Megatron's DDP); None runs the module
                itself.
            gather_vocab: all columns of the vocabulary on every tensor rank.
        Returns:
            On the last stage logits, [T, v] or [T, V], padding columns included; before it hidden
            states in Megatron's form, [T, 1, D].
        """
        stream.rope_cos_TK, stream.rope_sin_TK = self._rope.at(stream.positions_T)
        output = (model or self.model)(
            tokens_T[None],
            stream.positions_T[None],
            None,
            packed_seq_params=stream,
            runtime_gather_output=gather_vocab,
        )
        return output[0] if self.layout.is_last_stage else output

    @contextmanager
    def inference(self) -> Iterator[None]:
        """Evaluation mode without gradients."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.model.train(was_training)

    def new_cache(self, *, num_rows: int, max_context: int) -> KvCache:
        """An empty cache for this stage's layers."""
        return KvCache(
            layer_numbers=self.layer_numbers,
            num_rows=num_rows,
            max_context=max_context,
            width=_cache_width(self.config, self.layout.tp.size),
            dtype=self.dtype,
            device=self.host.device,
        )


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


def _separate_expert_gradients(model: GPTModel) -> None:
    """Reduce expert gradients over the ranks that hold the same experts.

    Megatron's linears mark expert weights so only when expert parallelism is on. Without it, and
    with tensor ranks that each hold whole experts (expert_tensor < tensor), the experts' gradients,
    each from the rank's own part of the tokens, would never be added up over the tensor ranks.
    """
    for name, parameter in model.named_parameters():
        if ".experts." in name:
            parameter.allreduce = False
