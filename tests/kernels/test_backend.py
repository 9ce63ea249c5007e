"""Who computes, and the one switch for all."""

from __future__ import annotations

import pytest
import torch

from r1_kernels.backend import Backend, takes_triton
from r1_kernels.fp8_blocks import quantize


def test_plain_pytorch_computes_on_a_cpu_unless_triton_is_asked_for(monkeypatch):
    monkeypatch.delenv("R1_KERNELS", raising=False)
    assert not takes_triton(Backend.auto, torch.zeros(1))
    assert not takes_triton(Backend.reference, torch.zeros(1))


def test_one_variable_switches_whatever_takes_the_default(device, monkeypatch):
    matrix = torch.randn(3, 130, device=device)
    for value in ("reference", "triton"):
        monkeypatch.setenv("R1_KERNELS", value)
        assert takes_triton(Backend.auto, matrix) == (value == "triton")
        assert not takes_triton(Backend.reference, matrix)
        codes, _ = quantize(matrix)
        expected, _ = quantize(matrix, backend=Backend.reference)
        assert torch.equal(codes.float(), expected.float())
    monkeypatch.setenv("R1_KERNELS", "cuda")
    with pytest.raises(
        ValueError, match="R1_KERNELS must be auto, reference or triton, got 'cuda'"
    ):
        quantize(matrix)
