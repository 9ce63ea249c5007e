"""Small layers that Megatron-Core's plain (non-TE) path lacks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class RmsNorm(torch.nn.RMSNorm):
    """RMSNorm that works under sequence parallelism, where ranks' gradients are summed."""

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any
    ) -> None:
        device = torch.cuda.current_device()
        super().__init__(hidden_size, eps=eps, device=device, dtype=config.params_dtype)
        self.weight.sequence_parallel = config.sequence_parallel


class LatentNorm(RmsNorm):
    """The norm of a query or key-value latent.

    Its eps is 1e-6 whatever the model's: so it is in DeepSeek's and Hugging Face's code. They
    differ in Moonlight, whose other norms have 1e-5.
    """

    def __init__(
        self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any
    ) -> None:
        super().__init__(config, hidden_size, eps=1e-6)


class ReplicatedLinear(torch.nn.Module):
    """A linear without bias whose whole weight is on every tensor-parallel rank.

    Multi-latent attention's down-projections are small and their outputs are needed whole.
    Megatron's plain path makes them column-parallel and gathers the output with an operation whose
    backward does not add up what the other ranks' heads contribute to the shared rope key; here
    nothing is gathered. Under sequence parallelism each rank sees a part of the stream, and
    gradients are summed.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        *,
        config: TransformerConfig,
        init_method: Callable[[Tensor], Any],
    ) -> None:
        super().__init__()
        device = torch.cuda.current_device()
        weight = torch.empty(output_size, input_size, device=device, dtype=config.params_dtype)
        self.weight = torch.nn.Parameter(weight)
        self.weight.sequence_parallel = config.sequence_parallel
        if config.perform_initialization:
            init_method(self.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        """[..., input] -> [..., output], and no bias: Megatron's linears return a pair."""
        return torch.nn.functional.linear(x, self.weight), None
