"""Who computes: plain PyTorch or Triton.

One switch for all that takes the default: the environment variable R1_KERNELS, auto, reference or
triton. It reaches whatever calls a kernel: training, publishing, tools/.
"""

from __future__ import annotations

import importlib.util
import os
from enum import Enum

import torch
from torch import Tensor

VARIABLE = "R1_KERNELS"


class Backend(Enum):
    """The switch of every public function here."""

    auto = "auto"
    """What R1_KERNELS says; without it, Triton for tensors on a GPU where it is installed, and
    plain PyTorch elsewhere."""
    reference = "reference"
    """Plain PyTorch."""
    triton = "triton"
    """Triton, or an error; on a CPU in Triton's interpreter, which is for tests."""


def takes_triton(backend: Backend, tensor: Tensor, *, capability: tuple[int, int] = (0, 0)) -> bool:
    """Whether Triton computes on this tensor.

    Args:
        capability: a GPU of a smaller one cannot run the kernel; `auto` takes plain PyTorch there.
    Raises:
        ValueError: Triton was asked for, and cannot be had.
    """
    if backend is Backend.auto:
        backend = from_environment()
    if backend is Backend.reference:
        return False
    if backend is Backend.auto:
        # Float64 is for tests of the definitions: the kernels compute in float32.
        if not tensor.is_cuda or tensor.dtype is torch.float64 or not _triton_is_installed():
            return False
        return torch.cuda.get_device_capability(tensor.device) >= capability
    if not _triton_is_installed():
        raise ValueError("backend = triton, and Triton is not installed: pip install triton")
    if tensor.dtype is torch.float64:
        raise ValueError(
            "a tensor of float64 and backend = triton, whose kernels compute in float32. Set "
            f"backend = reference, or {VARIABLE}=auto"
        )
    if not tensor.is_cuda:
        from r1_kernels.triton import is_interpreted

        if not is_interpreted():
            raise ValueError(
                f"backend = triton for a tensor on {tensor.device}. Move it to a GPU, or set "
                "TRITON_INTERPRET=1 before Triton is imported"
            )
    return True


def from_environment() -> Backend:
    """What R1_KERNELS says; `auto` without it.

    Raises:
        ValueError: it is none of the three.
    """
    value = os.environ.get(VARIABLE, Backend.auto.value)
    if value not in [backend.value for backend in Backend]:
        raise ValueError(f"{VARIABLE} must be auto, reference or triton, got {value!r}")
    return Backend(value)


def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
