"""Who computes: plain PyTorch or Triton."""

from __future__ import annotations

import importlib.util
from enum import Enum

import torch
from torch import Tensor


class Backend(Enum):
    """The switch of every public function here."""

    auto = "auto"
    """Triton for tensors on a GPU, where it is installed; plain PyTorch elsewhere."""
    reference = "reference"
    """Plain PyTorch."""
    triton = "triton"
    """Triton, or an error; on a CPU in Triton's interpreter, which is for tests."""


def takes_triton(backend: Backend, tensor: Tensor) -> bool:
    """Whether Triton computes on this tensor.

    Raises:
        ValueError: Triton was asked for, and cannot be had.
    """
    if backend is Backend.reference:
        return False
    if backend is Backend.auto:
        # Float64 is for tests of the definitions: the kernels compute in float32.
        return tensor.is_cuda and tensor.dtype is not torch.float64 and _triton_is_installed()
    if not _triton_is_installed():
        raise ValueError("backend = triton, and Triton is not installed: pip install triton")
    if not tensor.is_cuda:
        from r1_kernels.triton import is_interpreted

        if not is_interpreted():
            raise ValueError(
                f"backend = triton for a tensor on {tensor.device}. Move it to a GPU, or set "
                "TRITON_INTERPRET=1 before Triton is imported"
            )
    return True


def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
