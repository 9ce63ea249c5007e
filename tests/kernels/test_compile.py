"""Every launch of every kernel is compiled to machine code, for GPUs that are not here.

Triton's wheel has the assembler. What this shows: the kernels compile for these architectures, with
the instructions that are meant, in registers alone. It runs nothing.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from r1_kernels.fp8_blocks import FIRST_WITH_FP8

WORKER = Path(__file__).parent / "compile_worker.py"
BEFORE_FP8, HOPPER, BLACKWELL = 80, 90, 100
SHARED_BYTES = 227 << 10
"""What one program may take on a Hopper or Blackwell GPU (CUDA's programming guide, "Technical
specifications per compute capability")."""
KERNELS = {
    "_quantize_kernel",
    "_dequantize_kernel",
    "_statistics_kernel",
    "_gradient_kernel",
    "_loss_kernel",
    "_permute_kernel",
    "_unpermute_kernel",
    "_weight_gradient_kernel",
}
# One process compiles for all tests of this file.
pytestmark = pytest.mark.xdist_group("compile")


@pytest.fixture(scope="module")
def kernels() -> list[dict]:
    pytest.importorskip("triton", reason="Triton is not installed")
    environment = {name: os.environ[name] for name in os.environ if name != "TRITON_INTERPRET"}
    root = Path(__file__).parents[2]
    environment["PYTHONPATH"] = f"{root / 'kernels'}"
    done = subprocess.run(
        [sys.executable, WORKER, *map(str, (BEFORE_FP8, HOPPER, BLACKWELL))],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("architecture", [HOPPER, BLACKWELL])
def test_every_launch_compiles_and_fits(kernels, architecture):
    ours = [kernel for kernel in kernels if kernel["architecture"] == architecture]
    assert not [kernel for kernel in ours if "error" in kernel]
    assert {kernel["kernel"] for kernel in ours} == KERNELS
    for kernel in ours:
        # A thread's numbers that do not fit its registers go to memory: stack or local.
        assert kernel["stack"] == kernel["local"] == 0, kernel
        assert 0 < kernel["registers"] <= 255 and kernel["shared"] <= SHARED_BYTES, kernel


def test_every_kernel_of_the_package_is_launched():
    sources = (Path(__file__).parents[2] / "kernels/r1_kernels/triton").glob("*.py")
    launched = {
        line.split("[")[0].strip()
        for source in sources
        for line in source.read_text().splitlines()
        if "_kernel[" in line
    }
    assert launched == KERNELS


@pytest.mark.parametrize("architecture", [HOPPER, BLACKWELL])
def test_hardware_converts_to_fp8_and_minima_keep_a_nan(kernels, architecture):
    for kernel in kernels:
        if kernel["architecture"] != architecture:
            continue
        kept = "kept scales" in kernel["launch"]
        meant = {
            "_quantize_kernel": (True, kept),
            "_dequantize_kernel": (False, True),
        }.get(kernel["kernel"], (False, False))
        assert (kernel["to_e4m3"] > 0, kernel["from_e4m3"] > 0) == meant, kernel
        assert (kernel["nan_minima"] > 0) == (kernel["kernel"] == "_loss_kernel"), kernel


@pytest.mark.parametrize("architecture", [HOPPER, BLACKWELL])
def test_powers_of_two_divide_once_a_tile_and_not_once_a_number(kernels, architecture):
    divisions = {
        kernel["launch"]: kernel["divisions"]
        for kernel in kernels
        if kernel["architecture"] == architecture
    }
    for name in ("tiles", "blocks"):  # the largest number by 448, and 1 by the scale
        assert divisions[f"quantise bfloat16 {name}, powers of two"] == 2
    # By another scale only a division rounds as the definition does: of 16 numbers of a thread.
    assert divisions["quantise bfloat16 tiles, float32 scales"] > 16


def test_fp8_begins_where_the_switch_says(kernels):
    """On an older GPU `auto` takes plain PyTorch for FP8, and Triton for all else."""
    older = [kernel for kernel in kernels if kernel["architecture"] == BEFORE_FP8]
    assert FIRST_WITH_FP8 > (8, 0)
    for kernel in older:
        assert ("error" in kernel) == ("quantise" in kernel["launch"]), kernel
        assert "fp8e4nv not supported" in kernel.get("error", "fp8e4nv not supported")
