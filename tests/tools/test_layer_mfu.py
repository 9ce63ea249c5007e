"""What tools/bench/layer_mfu.py counts, and that it runs."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_r1.config.load import load_config

ROOT = Path(__file__).parents[2]
SMALL = (
    *("model.hidden_size=64", "model.ffn_hidden_size=128", "model.num_attention_heads=4"),
    *("model.q_lora_rank=32", "model.kv_lora_rank=32", "model.moe_ffn_hidden_size=64"),
    *("model.num_experts=8", "model.experts_per_token=2"),
    *("model.num_expert_groups=4", "model.groups_per_token=1"),
)


def test_operations_of_a_small_layer(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools/bench")
    layer_mfu = importlib.import_module("layer_mfu")
    one_layer = ("model=deepseek_v3", "model.num_layers=1", "model.num_mtp_layers=0")
    dense = load_config([*one_layer, "model.num_dense_layers=1", *SMALL]).model
    mixture = load_config([*one_layer, "model.num_dense_layers=0", *SMALL]).model

    queries = 64 * 32 + 32 + 32 * 4 * (128 + 64)
    keys_and_values = 64 * (32 + 64) + 32 + 32 * 4 * (128 + 128)
    attention = queries + keys_and_values + 4 * 128 * 64
    norms = 3 * 64
    pairs = (1 + 2 + 3) + (1 + 2)  # sequences of 3 and 2 tokens
    scores = 2 * pairs * 4 * (128 + 64 + 128)
    for model, mlp in ((dense, 3 * 64 * 128), (mixture, 3 * 64 * 64 * (2 + 1) + 64 * 8)):
        expected = 3 * (2 * 5 * (attention + norms + mlp) + scores)
        assert layer_mfu.layer_flops(model, (3, 2)) == expected


def test_it_runs_on_any_device():
    command = [sys.executable, ROOT / "tools/bench/layer_mfu.py", "--layer", "mixture"]
    command += ["--tokens", "40", "--length", "16", "--rounds", "2", "--precision", "fp32"]
    command += ["--peak-tflops", "0.001", *SMALL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    *_, row = done.stdout.splitlines()
    precision, ms, _, tflops, mfu = (cell.strip() for cell in row.strip("| ").split("|"))
    assert precision == "fp32" and float(ms) > 0 and float(mfu.rstrip("%")) > 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="it is measured here")
@pytest.mark.parametrize(
    ("asked", "way_out"),
    [
        ([], "On a CPU say what to time: "),
        (["--precision", "fp8_block", "--tokens", "40", *SMALL], "precision=fp8_block_sim"),
    ],
)
def test_what_needs_a_gpu_is_one_line_without_one(asked, way_out):
    command = [sys.executable, ROOT / "tools/bench/layer_mfu.py", *asked]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 2, done.stderr[-2000:]
    (message,) = done.stderr.splitlines()
    assert message.startswith("ConfigError: ") and way_out in message
    if not asked:  # the way out is one
        command += message.partition(way_out)[2].split()
        done = subprocess.run(command, capture_output=True, text=True, timeout=280)
        assert done.returncode == 0 and "| fp32 " in done.stdout, done.stderr[-2000:]
