"""Who computes, and the one switch for all."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from r1_kernels.backend import Backend, problem_of_choice, takes_triton
from r1_kernels.fp8_blocks import FIRST_WITH_FP8, quantize


def test_plain_pytorch_computes_on_a_cpu_unless_triton_is_asked_for(monkeypatch):
    monkeypatch.delenv("R1_KERNELS", raising=False)
    assert not takes_triton(Backend.auto, torch.zeros(1))
    assert not takes_triton(Backend.reference, torch.zeros(1))


@pytest.mark.parametrize(("gpu", "taken"), [((8, 0), False), ((8, 9), True), ((9, 0), True)])
def test_gpus_without_fp8_quantise_by_plain_pytorch(gpu, taken, monkeypatch):
    monkeypatch.delenv("R1_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: gpu)
    tensor = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device="cuda")
    assert takes_triton(Backend.auto, tensor, capability=FIRST_WITH_FP8) == taken
    assert takes_triton(Backend.auto, tensor)  # all other kernels
    assert takes_triton(Backend.triton, tensor, capability=FIRST_WITH_FP8)  # asked for by name


def test_a_backend_may_be_its_word_and_nothing_else(monkeypatch):
    monkeypatch.delenv("R1_KERNELS", raising=False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    tensor = SimpleNamespace(is_cuda=True, dtype=torch.bfloat16, device="cuda")
    for backend in Backend:
        assert takes_triton(backend.value, tensor) == takes_triton(backend, tensor)
    assert torch.equal(
        quantize(torch.ones(2, 2), backend="reference")[1], torch.full((1, 1), 1 / 448)
    )
    for wrong in ("cuda", "", None, False):
        with pytest.raises(
            ValueError, match=f"backend must be auto, reference or triton, got {wrong!r}"
        ):
            quantize(torch.ones(2, 2), backend=wrong)


def test_a_choice_that_cannot_run_is_named_with_the_way_out(monkeypatch):
    import triton

    monkeypatch.setattr(triton.knobs.runtime, "interpret", False)
    for value in ("auto", "reference"):
        monkeypatch.setenv("R1_KERNELS", value)
        assert problem_of_choice("cpu") == ""
    monkeypatch.setenv("R1_KERNELS", "triton")
    assert problem_of_choice("cuda:1") == ""
    problem = problem_of_choice(torch.device("cpu"))
    assert problem.startswith("R1_KERNELS=triton, and Triton does not run on cpu. ")
    assert "R1_KERNELS=auto or R1_KERNELS=reference" in problem and "backend" not in problem
    with pytest.raises(ValueError) as error:
        quantize(torch.ones(2, 2))
    assert str(error.value) == problem
    with pytest.raises(ValueError, match="backend=triton, and .* cpu. .*backend=auto or backend="):
        quantize(torch.ones(2, 2), backend="triton")
    monkeypatch.setattr(triton.knobs.runtime, "interpret", True)
    assert problem_of_choice("cpu") == ""
    with pytest.raises(ValueError, match="float64 and R1_KERNELS=triton, .*Set R1_KERNELS=auto"):
        takes_triton(Backend.auto, torch.ones(2, dtype=torch.float64))
    monkeypatch.setenv("R1_KERNELS", "cuda")
    assert problem_of_choice("cpu").endswith("got 'cuda'")


def test_one_variable_switches_whatever_takes_the_default(device, monkeypatch):
    matrix = torch.randn(3, 130, device=device)
    for value in ("reference", "triton"):
        monkeypatch.setenv("R1_KERNELS", value)
        assert takes_triton(Backend.auto, matrix) == (value == "triton")
        assert not takes_triton(Backend.reference, matrix)
        codes, _ = quantize(matrix)
        expected, _ = quantize(matrix, backend=Backend.reference)
        assert torch.equal(codes.float(), expected.float())
    with pytest.raises(ValueError, match="float64.*triton.*float32"):
        takes_triton(Backend.triton, matrix.double())
    monkeypatch.setenv("R1_KERNELS", "cuda")
    with pytest.raises(
        ValueError, match="R1_KERNELS must be auto, reference or triton, got 'cuda'"
    ):
        quantize(matrix)
