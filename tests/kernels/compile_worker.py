"""Compiles every launch of every kernel for a GPU that is not here, and prints what came out.

    python tests/kernels/compile_worker.py 90 100

The kernels' own functions are called with tensors that have a shape and no memory, and Triton is
told of a device of the given architecture. What it compiles is what it would compile there: the
types, constants and alignments are those of the launch. Then nothing is launched. To be run in a
process of its own: Triton decides at its first import whether it interprets.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget

from r1_kernels.fp8_blocks import TILE_OF_ACTIVATIONS, TILE_OF_WEIGHTS
from r1_kernels.moe_permute import place
from r1_kernels.triton import fp8_blocks, grpo_loss, logit_rows, moe_permute

CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Absent:
    """A device without a driver, as far as compiling asks for one."""

    def __init__(self, architecture: int) -> None:
        self._architecture = architecture

    def get_current_device(self) -> int:
        return self._architecture

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self._architecture, 32)


def matrix(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.empty(rows, columns, dtype=dtype, device="meta")


def quantisation() -> dict[str, Callable[[], object]]:
    """What conversion, publishing and the simulation ask for; 7168 x 2048 is DeepSeek-V3's expert,
    576 its latent, and 200 and 33 divide by nothing."""
    launches = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        weight = matrix(2048, 7168, dtype)
        kept = torch.empty(16, 56, device="meta")
        how = dict(tile=TILE_OF_WEIGHTS)
        launches[f"quantise {dtype} blocks"] = partial(fp8_blocks.quantize, weight, **how)
        launches[f"quantise {dtype} blocks, kept scales"] = partial(
            fp8_blocks.quantize, weight, kept_rc=kept, **how
        )
    for name, x in {
        "bfloat16": matrix(4096, 7168),
        "bfloat16 transposed": matrix(4096, 7168).T,
        "bfloat16 of odd sizes": matrix(33, 201),
        "float32": matrix(4096, 576, torch.float32),
    }.items():
        for scales in ("powers of two", "float32 scales"):
            launches[f"quantise {name} tiles, {scales}"] = partial(
                fp8_blocks.quantize,
                x,
                tile=TILE_OF_ACTIVATIONS,
                power_of_two=scales == "powers of two",
            )
    for name, x in (("", matrix(4096, 7168)), (" transposed", matrix(4096, 7168).T)):
        launches[f"quantise bfloat16{name} blocks, powers of two"] = partial(
            fp8_blocks.quantize, x, tile=TILE_OF_WEIGHTS, power_of_two=True
        )
    for dtype in (torch.bfloat16, torch.float32, torch.float16):
        for tile, shape in ((TILE_OF_WEIGHTS, (16, 56)), (TILE_OF_ACTIVATIONS, (2048, 56))):
            launches[f"dequantise to {dtype} by {tile}"] = partial(
                fp8_blocks.dequantize,
                matrix(2048, 7168, torch.float8_e4m3fn),
                torch.empty(shape, device="meta"),
                dtype,
                tile=tile,
            )
    return launches


def others() -> dict[str, Callable[[], object]]:
    launches = {}
    targets = torch.empty(256, dtype=torch.int64, device="meta")
    number = torch.empty(256, device="meta")
    for dtype in (torch.bfloat16, torch.float32):
        for num_columns in (129280, 77):
            logits = matrix(256, num_columns, dtype)
            how = dict(scale=0.7, num_valid=None)
            launches[f"statistics of {num_columns} {dtype}"] = partial(
                logit_rows.logit_statistics, logits, targets, **how
            )
            launches[f"gradient of {num_columns} {dtype}"] = partial(
                logit_rows.logit_gradient, logits, targets, number, number, number, **how
            )
    mask = torch.empty(256, dtype=torch.bool, device="meta")
    for name, ref in (("a reference", number), ("none", None)):
        launches[f"policy loss with {name}"] = partial(
            grpo_loss.grpo_loss, number, number, ref, number, number, mask,
            eps_low=0.2, eps_high=0.2, kl_beta=0.001,
        )  # fmt: skip
    experts = torch.arange(8).repeat(256, 1)
    placement = place(experts, 256, multiple=128)
    rows = placement.rows_TK.to("meta"), placement.copies_M.to("meta")
    for dtype in (torch.bfloat16, torch.float32):
        launches[f"permutation of {dtype}"] = partial(there_and_back, dtype, *rows, weighted=False)
        launches[f"permutation of {dtype}, weighted"] = partial(
            there_and_back, dtype, *rows, weighted=True
        )
    return launches


def there_and_back(
    dtype: torch.dtype, rows_TK: Tensor, copies_M: Tensor, *, weighted: bool
) -> None:
    tokens = matrix(256, 7168, dtype).requires_grad_()
    weights = torch.empty(256, 8, device="meta", requires_grad=True) if weighted else None
    there = moe_permute.permute(tokens, rows_TK, copies_M)
    moe_permute.unpermute(there, rows_TK, copies_M, weights).sum().backward()


def resources(cubin: bytes) -> dict[str, int]:
    """Registers, stack and local memory of a thread, as the assembler has laid them out."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [CUOBJDUMP, "-res-usage", file.name]
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", listing)
    assert found, listing
    return dict(zip(("registers", "stack", "local"), map(int, found.groups()), strict=True))


def compiled(architecture: int, launch: Callable[[], object]) -> list[dict[str, object]]:
    """What one call has compiled, kernel by kernel."""
    triton.runtime.driver.set_active(Absent(architecture))
    kernels = []

    def compile_only(function, grid):
        def collect(*args, **kwargs):
            kernels.append((function, function.run(*args, grid=grid, warmup=True, **kwargs)))

        return collect

    triton.JITFunction.__getitem__ = compile_only
    try:
        launch()
    except triton.compiler.CompilationError as error:
        return [dict(error=str(error)[-600:])]
    return [
        dict(
            kernel=function.__name__,
            shared=kernel.metadata.shared,
            to_e4m3=len(re.findall(r"cvt\S*\.e4m3x2\.f32", kernel.asm["ptx"])),
            from_e4m3=len(re.findall(r"cvt\S*\.f16x2\.e4m3x2", kernel.asm["ptx"])),
            divisions=len(re.findall(r"\bdiv\.", kernel.asm["ptx"])),
            nan_minima=len(re.findall(r"(?:min|max)\.NaN", kernel.asm["ptx"])),
            **resources(kernel.asm["cubin"]),
        )
        for function, kernel in kernels
    ]


def main() -> None:
    for architecture in map(int, sys.argv[1:]):
        for name, launch in (quantisation() | others()).items():
            for kernel in compiled(architecture, launch):
                print(
                    json.dumps(dict(architecture=architecture, launch=name, **kernel)), flush=True
                )


if __name__ == "__main__":
    main()
