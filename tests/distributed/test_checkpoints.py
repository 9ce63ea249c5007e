"""Checkpoints across layouts: converted from and to Hugging Face, and with optimizer state."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from megatron_r1.checkpoint.conversion import WeightDtype
from megatron_r1.checkpoint.hf_export import export_hf
from megatron_r1.checkpoint.hf_import import import_hf
from megatron_r1.config.load import load_config
from tests.checkpoint.hub import differences, write_with_transformers
from tests.distributed.conversion_worker import LAYOUTS, NO_MTP, layout_name

WORKER = Path(__file__).with_name("conversion_worker.py")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.timeout(1200),
]


def run_ranks(world_size: int, *arguments: object) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={world_size}", str(WORKER), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1100)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.mark.parametrize(("model", "world_size"), sorted(LAYOUTS))
def test_what_any_layout_saved_is_exported_byte_for_byte(model, world_size, tmp_path):
    overrides = ["model.vocab_size=509", "model.num_layers=5", NO_MTP]
    config = load_config([f"model={model}", *overrides]).model
    hub = write_with_transformers(tmp_path / "hub", config, dtype=torch.bfloat16)
    import_hf(hub, tmp_path / "megatron", show_progress=False)
    run_ranks(world_size, "round_trip", tmp_path, model)
    for parallel in LAYOUTS[model, world_size]:
        saved, back = tmp_path / layout_name(parallel), tmp_path / f"{layout_name(parallel)}_hf"
        # Trained in float32, which holds every bfloat16 number.
        export_hf(saved, back, dtype=WeightDtype.bfloat16, show_progress=False)
        assert differences(hub, back) == [], parallel


@pytest.mark.parametrize(("model", "world_size"), sorted(LAYOUTS))
def test_the_next_step_is_the_old_layouts(model, world_size, tmp_path):
    """Weights, Adam's moments and step counts: loss and gradient norm of the step after."""
    run_ranks(world_size, "ring", tmp_path, model)
    results = json.loads((tmp_path / "ring.json").read_text())
    assert len(results) == len(LAYOUTS[model, world_size])
    for result in results:
        for metric in ("train/loss", "train/grad_norm"):
            expected, found = result["expected"][metric], result["found"][metric]
            assert found == pytest.approx(expected, rel=1e-5), (metric, result)
