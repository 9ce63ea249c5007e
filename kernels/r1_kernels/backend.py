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
    """The switch of every public function here, which takes a member's word as well."""

    auto = "auto"
    """What R1_KERNELS says; without it, Triton for tensors on a GPU where it is installed, and
    plain PyTorch elsewhere."""
    reference = "reference"
    """Plain PyTorch."""
    triton = "triton"
    """Triton, or an error; on a CPU in Triton's interpreter, which is for tests."""


def takes_triton(
    backend: Backend | str, tensor: Tensor, *, capability: tuple[int, int] = (0, 0)
) -> bool:
    """Whether Triton computes on this tensor.

    Args:
        backend: a member or its word.
        capability: a GPU of a smaller one cannot run the kernel; `auto` takes plain PyTorch there.
    Raises:
        ValueError: no such backend, or Triton was asked for and cannot be had.
    """
    chosen, setting = _named(backend, "backend"), "backend"
    if chosen is Backend.auto:
        chosen, setting = from_environment(), VARIABLE
    if chosen is Backend.reference:
        return False
    if chosen is Backend.auto:
        # Float64 is for tests of the definitions: the kernels compute in float32.
        if not tensor.is_cuda or tensor.dtype is torch.float64 or not _triton_is_installed():
            return False
        return torch.cuda.get_device_capability(tensor.device) >= capability
    if problem := _problem_of_triton(setting, tensor.device):
        raise ValueError(problem)
    if tensor.dtype is torch.float64:
        raise ValueError(
            f"a tensor of float64 and {setting}=triton, whose kernels compute in float32. "
            f"{_way_out(setting)}"
        )
    return True


def from_environment() -> Backend:
    """What R1_KERNELS says; `auto` without it.

    Raises:
        ValueError: it is none of the three.
    """
    return _named(os.environ.get(VARIABLE, Backend.auto.value), VARIABLE)


def problem_of_choice(device: torch.device | str) -> str:
    """Why what R1_KERNELS says cannot run on this device, and the way out; empty where it can."""
    try:
        chosen = from_environment()
    except ValueError as error:
        return str(error)
    return _problem_of_triton(VARIABLE, device) if chosen is Backend.triton else ""


def _named(value: Backend | str, setting: str) -> Backend:
    try:
        return Backend(value)
    except ValueError:
        raise ValueError(f"{setting} must be auto, reference or triton, got {value!r}") from None


def _problem_of_triton(setting: str, device: torch.device | str) -> str:
    """Empty where Triton runs; `setting` is what asked for it."""
    if not _triton_is_installed():
        return (
            f"{setting}=triton, and Triton is not installed. {_way_out(setting)}, or install it: "
            "pip install triton"
        )
    if torch.device(device).type != "cuda":
        from r1_kernels.triton import is_interpreted

        if not is_interpreted():
            return (
                f"{setting}=triton, and Triton does not run on {device}. {_way_out(setting)}. "
                "TRITON_INTERPRET=1, set before Triton is imported, runs it there for tests"
            )
    return ""


def _way_out(setting: str) -> str:
    return f"Set {setting}=auto or {setting}=reference"


def _triton_is_installed() -> bool:
    return importlib.util.find_spec("triton") is not None
