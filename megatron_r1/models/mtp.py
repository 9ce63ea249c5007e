"""Multi-token prediction: layers behind the model that predict tokens further ahead.

DeepSeek-V3 (arXiv:2412.19437) section 2.2. Prediction layer k makes of the state at token i, and of
the embedding of token i + k, the logits of token i + k + 1. Layers and weights are Megatron-Core's;
ours is what a packed stream asks for: tokens further ahead come with the stream, which knows where
its sequences end and which of them this context rank holds.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel import checkpoint
from megatron.core.tensor_parallel.layers import ColumnParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from megatron.core.transformer.multi_token_prediction import (
    MultiTokenPredictionBlock,
    MultiTokenPredictionBlockSubmodules,
    MultiTokenPredictionLayer,
    MultiTokenPredictionLayerSubmodules,
)
from megatron.core.transformer.spec_utils import ModuleSpec
from torch import Tensor

from megatron_r1.models.layers import RmsNorm
from megatron_r1.models.stream import TokenStream


def mtp_block_spec(transformer_layer: ModuleSpec, num_layers: int) -> ModuleSpec:
    """`num_layers` prediction layers, each with a transformer layer of this kind."""
    layer = ModuleSpec(
        module=StreamMtpLayer,
        submodules=MultiTokenPredictionLayerSubmodules(
            enorm=RmsNorm,
            hnorm=RmsNorm,
            eh_proj=ColumnParallelLinear,
            transformer_layer=transformer_layer,
            layer_norm=RmsNorm,
        ),
    )
    return ModuleSpec(
        module=MultiTokenPredictionBlock,
        submodules=MultiTokenPredictionBlockSubmodules(layer_specs=[layer] * num_layers),
    )


class StreamMtpLayer(MultiTokenPredictionLayer):
    """A prediction layer that takes the tokens ahead from the stream."""

    def _get_embeddings(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        embedding: Callable[..., Tensor],
        hidden_states: Tensor,
        packed_seq_params: TokenStream | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Megatron's own rolls the tokens of the stream, as if each rank held all of it."""
        ahead_1T = packed_seq_params.tokens_ahead_KT[self.layer_number - 1][None]
        decoder_input = embedding(input_ids=ahead_1T, position_ids=position_ids)
        return input_ids, position_ids, decoder_input, hidden_states

    def _checkpointed_forward(self, forward_func: Callable[..., Tensor], **kwargs: Any) -> Tensor:
        """Megatron's own would save the stream for the backward pass as if it were a tensor."""
        hidden_states, decoder_input = kwargs.pop("hidden_states"), kwargs.pop("decoder_input")
        return checkpoint(partial(forward_func, **kwargs), False, hidden_states, decoder_input)


class StreamModel(GPTModel):
    """A GPT model that runs its prediction layers for streams that bring tokens for them.

    Megatron's own would compute their loss inside the model, normalised in its own way.
    """

    def _postprocess(
        self,
        hidden_states: Tensor,
        *,
        packed_seq_params: TokenStream,
        runtime_gather_output: bool | None,
        **kwargs: Any,
    ) -> Tensor:
        """Logits, [1, T, v], of the last chunk, or hidden states for streams that want them; the
        prediction layers' go into the stream."""
        if not self.post_process:
            return hidden_states
        stream = packed_seq_params
        weight = None
        if self.share_embeddings_and_output_weights:
            weight = self.shared_embedding_or_output_weight()

        if stream.wants_hidden:
            stream.head_weight_vD = self.output_layer.weight if weight is None else weight

        def logits(states: Tensor) -> Tensor:
            if stream.wants_hidden:
                return self._to_all_columns(states).transpose(0, 1).contiguous()
            head = weight
            if stream.float32_head:
                head = (self.output_layer.weight if weight is None else weight).float()
                states = states.float()
            logits_T1v, _ = self.output_layer(
                states, weight=head, runtime_gather_output=runtime_gather_output
            )
            return logits_T1v.transpose(0, 1).contiguous()

        if stream.tokens_ahead_KT is not None:
            states = self.mtp(
                input_ids=kwargs["input_ids"],
                position_ids=kwargs["position_ids"],
                hidden_states=hidden_states,
                attention_mask=None,
                packed_seq_params=stream,
                embedding=self.embedding,
            )
            hidden_states, *ahead = torch.chunk(states, 1 + len(stream.tokens_ahead_KT), dim=0)
            stream.logits_ahead = [logits(each)[0] for each in ahead]
        return logits(hidden_states)

    def _to_all_columns(self, states: Tensor) -> Tensor:
        """States of the whole stream for this tensor rank's columns of the vocabulary; their
        gradients are summed over the ranks."""
        group = self.output_layer.tp_group
        if self.config.sequence_parallel:
            return gather_from_sequence_parallel_region(states, group=group)
        return copy_to_tensor_model_parallel_region(states, group=group)
