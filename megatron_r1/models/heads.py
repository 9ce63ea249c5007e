"""A scalar head in the place of the vocabulary's: one number for each token.

A reward model reads it at the last token of a response, a critic at every token. The number at
token t comes from the hidden state there, which has seen the tokens up to t.

    T tokens that this context rank holds     s those of them that this tensor rank does
"""

from __future__ import annotations

from typing import Any

import torch
from megatron.core.tensor_parallel.mappings import gather_from_sequence_parallel_region
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_r1.models.layers import ReplicatedLinear
from megatron_r1.models.mtp import StreamModel

HEAD_PREFIX = "score."
"""Of the head's parameters, here and in Hugging Face's sequence classifiers."""


class ScalarHead(ReplicatedLinear):
    """A linear of one output, whole on every tensor rank, in float32 whatever the model's type.

    Under sequence parallelism each rank multiplies its own tokens, and what is gathered is their
    numbers: all ranks then make the same loss of them, so that each takes its own tokens' part of
    the gradient, and the weight's gradients are summed like a norm's.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config.hidden_size, 1, config=config, init_method=config.init_method)
        self._is_split = config.sequence_parallel

    def forward(self, hidden_s1D: Tensor) -> Tensor:
        """values_T, float32, on every tensor rank."""
        values_s11 = torch.nn.functional.linear(hidden_s1D.float(), self.weight.float())
        values_s = values_s11.flatten()
        if not self._is_split:
            return values_s
        return gather_from_sequence_parallel_region(values_s, tensor_parallel_output_grad=False)


class ValueModel(StreamModel):
    """A GPT model that ends in a scalar head."""

    def __init__(self, config: TransformerConfig, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        if self.post_process:
            del self.output_layer  # which Megatron builds in any case
            self.score = ScalarHead(config)

    def _postprocess(self, hidden_states: Tensor, **unused: Any) -> Tensor:
        """values, [1, T], of the last chunk; hidden states of those before it."""
        return self.score(hidden_states)[None] if self.post_process else hidden_states

    def sharded_state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Without what Megatron's language models say of their output layer."""
        return MegatronModule.sharded_state_dict(self, *args, **kwargs)
