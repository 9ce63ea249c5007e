"""What tools/bench/logprob_memory.py counts at the paper's sizes, and measures at smaller ones."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bench():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "tools/bench")
        yield importlib.import_module("logprob_memory")


def test_a_step_of_32768_tokens_needs_a_twentieth_of_the_memory(bench, monkeypatch):
    monkeypatch.setenv("R1_KERNELS", "reference")  # no memory is touched: nothing to run Triton on
    plain, fused = (
        bench.counted_bytes(way, 32768, 7168, 129280, torch.bfloat16) for way in ("plain", "fused")
    )
    # All logits in bfloat16 alone are 8 GB; the fused way's own chunk of them is 64 MiB.
    assert plain > 32768 * 129280 * 2
    assert 2**26 < fused <= plain / 20


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="not Linux")
def test_a_process_needs_what_is_counted(bench):
    """128 MiB of logits for real, each way in processes of its own; chunks of them of 1 MiB. The
    least of three counts: now and then a process is given some 10 MiB more, by nothing of ours."""
    sizes = "4096, 64, 16384, torch.bfloat16, 2**20"
    paths = [ROOT, ROOT / "kernels", ROOT / "tools/bench"]
    environment = {**os.environ, "R1_KERNELS": "reference", "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    found = {}
    for way in ("plain", "fused"):
        code = f"import torch, logprob_memory as b; print(b.measured_bytes({way!r}, {sizes}))"
        command = [sys.executable, "-c", code]
        run = partial(subprocess.run, command, env=environment, capture_output=True, check=True)
        found[way] = min(int(run().stdout) for _ in range(3))
        counted = bench.counted_bytes(way, 4096, 64, 16384, torch.bfloat16, 2**20)
        # A process rounds up and keeps some of what it frees: some MiB, which the fused way shows.
        assert counted / 1.25 < found[way] < 1.25 * counted + 2**23, (way, counted, found)
    assert found["fused"] <= 2 * 4096 * 16384 * 2 / 20, found  # logits and their gradient
