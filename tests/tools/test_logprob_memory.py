"""What tools/bench/logprob_memory.py counts at the paper's sizes."""

from __future__ import annotations

import importlib
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def test_a_step_of_32768_tokens_needs_a_twentieth_of_the_memory(monkeypatch):
    monkeypatch.setenv("R1_KERNELS", "reference")  # no memory is touched: nothing to run Triton on
    monkeypatch.syspath_prepend(ROOT / "tools/bench")
    counted_bytes = importlib.import_module("logprob_memory").counted_bytes
    plain, fused = (
        counted_bytes(way, 32768, 7168, 129280, torch.bfloat16) for way in ("plain", "fused")
    )
    # All logits in bfloat16 alone are 8 GB; the fused way's own chunk of them is 64 MiB.
    assert plain > 32768 * 129280 * 2
    assert 2**26 < fused <= plain / 20
