"""A guard against silent broadcasting."""

from __future__ import annotations

from torch import Tensor


def check_same_shape(**tensors: Tensor) -> None:
    """Raise ValueError, listing every shape by name, unless all are the same."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items())
        raise ValueError(f"these tensors must have one shape: {shapes}")
