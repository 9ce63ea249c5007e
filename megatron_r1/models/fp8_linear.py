"""Linears that compute what FP8 hardware computes, in float32, on any device.

    T tokens   K inputs   N outputs

DeepSeek-V3 (arXiv:2412.19437) section 3.3.2: all three products of a linear are of E4M3 numbers.
Tiles run along the dimension that is summed over, weights come in blocks of 128 x 128:

    y_TN  = fp8(x_TK, 1 x 128) fp8(W_NK, 128 x 128)^T
    dx_TK = fp8(dy_TN, 1 x 128) fp8(W_NK, 128 x 128)
    dW_NK = fp8(dy_NT, 1 x 128) fp8(x_KT, 1 x 128)^T

Codes times scales are multiplied and added up in float32 and rounded once. Hardware adds up with
fewer bits inside a tile (V3 section 3.3.2 found 14); that is not imitated. Inputs are quantised
along tokens from their own values, as Transformer Engine does it, and not from their tiles along
channels. A tensor rank quantises its own part: where parts are multiples of 128 wide, what comes
out is what one rank computes, and at other widths tiles, and so roundings, depend on the layout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.tensor_parallel.mappings import (
    copy_to_tensor_model_parallel_region,
    gather_from_sequence_parallel_region,
)
from torch import Tensor
from torch.autograd.function import once_differentiable

from megatron_r1.models.layers import ReplicatedLinear
from r1_kernels.fp8_blocks import TILE_OF_ACTIVATIONS, TILE_OF_WEIGHTS, dequantize, quantize


@dataclass(frozen=True)
class Fp8Recipe:
    """How numbers are cut into tiles."""

    power_of_two: bool = True
    gradient_tile: tuple[int, int] = TILE_OF_ACTIVATIONS
    """Of gradients of activations."""


def fp8_linear(x: Tensor, weight_NK: Tensor, recipe: Fp8Recipe) -> Tensor:
    """[..., K] -> [..., N], in the dtype of x; gradients come by FP8 products, too."""
    return _Fp8Linear.apply(x, weight_NK, recipe)


class _Fp8Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight_NK, recipe):
        ctx.save_for_backward(x, weight_NK)
        ctx.recipe = recipe
        x_TK = _seen(x.reshape(-1, x.shape[-1]), TILE_OF_ACTIVATIONS, recipe)
        y_TN = x_TK @ _seen(weight_NK, TILE_OF_WEIGHTS, recipe).T
        return y_TN.to(x.dtype).view(*x.shape[:-1], weight_NK.shape[0])

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, weight_NK = ctx.saved_tensors
        recipe = ctx.recipe
        tile = recipe.gradient_tile
        grad_TN = grad.reshape(-1, grad.shape[-1])
        grad_x = grad_weight_NK = None
        if ctx.needs_input_grad[0]:
            weight = _seen(weight_NK, TILE_OF_WEIGHTS, recipe)
            grad_x = (_seen(grad_TN, tile, recipe) @ weight).to(x.dtype).view(x.shape)
        if ctx.needs_input_grad[1]:
            x_KT = _seen(x.reshape(-1, x.shape[-1]).T, TILE_OF_ACTIVATIONS, recipe)
            grad_weight_NK = (_seen(grad_TN.T, tile, recipe) @ x_KT.T).to(weight_NK.dtype)
        return grad_x, grad_weight_NK, None


def _seen(matrix: Tensor, tile: tuple[int, int], recipe: Fp8Recipe) -> Tensor:
    """What FP8 keeps of a matrix, in float32."""
    codes, scales = quantize(matrix, tile=tile, power_of_two=recipe.power_of_two)
    return dequantize(codes, scales, torch.float32, tile=tile)


def seen_by_product(linear: torch.nn.Module, x: Tensor) -> Tensor:
    """What `linear` makes of its inputs [..., K] before it multiplies them, in their dtype; for
    those who multiply in another order. Powers of two as scales change no bit of a code's number,
    so that bfloat16 holds it exactly."""
    if not isinstance(linear, _Fp8Products):
        return x
    x_TK = _seen(x.reshape(-1, x.shape[-1]), TILE_OF_ACTIVATIONS, linear._recipe)
    return x_TK.to(x.dtype).view(x.shape)


def weight_in_product(linear: torch.nn.Module) -> Tensor:
    """The same of its weight, [N, K]."""
    if not isinstance(linear, _Fp8Products):
        return linear.weight
    return _seen(linear.weight, TILE_OF_WEIGHTS, linear._recipe).to(linear.weight.dtype)


class _Fp8Products:
    """In front of one of Megatron's linears: its matrix product, by FP8."""

    def __init__(self, *args: Any, recipe: Fp8Recipe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recipe = recipe
        # Megatron's linears call this with what surrounds the product: see `_forward_impl`.
        self._forward_impl = self._fp8_product

    def _fp8_product(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *,
        allreduce_dgrad: bool,
        sequence_parallel: bool,
        tp_group: torch.distributed.ProcessGroup | None,
        **unused: Any,
    ) -> Tensor:
        if sequence_parallel:
            input = gather_from_sequence_parallel_region(input, group=tp_group)
        elif allreduce_dgrad:
            input = copy_to_tensor_model_parallel_region(input, group=tp_group)
        output = fp8_linear(input, weight, self._recipe)
        return output if bias is None else output + bias


class Fp8ColumnLinear(_Fp8Products, ColumnParallelLinear):
    """Megatron's linear, split by outputs."""


class Fp8RowLinear(_Fp8Products, RowParallelLinear):
    """Megatron's linear, split by inputs."""


class Fp8ReplicatedLinear(ReplicatedLinear):
    """A linear that is whole on every tensor rank."""

    def __init__(self, *args: Any, recipe: Fp8Recipe, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._recipe = recipe

    def forward(self, x: Tensor) -> tuple[Tensor, None]:
        return fp8_linear(x, self.weight, self._recipe), None
