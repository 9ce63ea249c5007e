"""Kernels are tested compiled where there is a GPU, and in Triton's interpreter elsewhere."""

from __future__ import annotations

import os

import pytest
import torch

HAS_GPU = torch.cuda.is_available()
if not HAS_GPU:
    os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel is defined, on its module's import


@pytest.fixture(
    params=[
        pytest.param(
            "cpu", marks=pytest.mark.skipif(HAS_GPU, reason="Triton compiles for the GPU here")
        ),
        pytest.param(
            "cuda",
            marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_GPU, reason="no CUDA device")],
        ),
    ]
)
def device(request) -> str:
    return request.param
