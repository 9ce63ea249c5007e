"""Layout invariance: one checkpoint gives one loss, one gradient and one update in every layout.

Every combination of tensor, pipeline, expert, expert-tensor and data parallelism that 2 and 4
processes allow is compared with one process, gradient by gradient. The same processes go through
all layouts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

WORKER = Path(__file__).with_name("layout_worker.py")
ROOT = Path(__file__).parents[2]

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.timeout(
        1500
    ),  # 25 layouts of four ranks; on two busy cores they wait for each other
]


def run(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True, timeout=1400
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module", params=["tiny_v3", "tiny_dense"])
def reference(request, tmp_path_factory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    run(str(WORKER), "reference", str(directory), request.param)
    return request.param, directory


@pytest.mark.parametrize("world_size", [2, 4])
def test_every_layout_computes_the_same(reference, world_size):
    model, directory = reference
    expected = {("tiny_v3", 2): 7, ("tiny_v3", 4): 25, ("tiny_dense", 2): 4, ("tiny_dense", 4): 7}
    check_layouts(model, directory, world_size, num_layouts=expected[model, world_size])


@pytest.mark.parametrize(
    ("model", "num_layouts"), [("qwen3", 2), ("qwen3_moe", 2), ("moonlight", 1)]
)
def test_other_families_compute_the_same_on_two_ranks(model, num_layouts, tmp_path):
    run(str(WORKER), "reference", str(tmp_path), model)
    check_layouts(model, tmp_path, 2, num_layouts=num_layouts)


def check_layouts(model: str, directory: Path, world_size: int, *, num_layouts: int) -> None:
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    run(*torchrun, str(WORKER), "compare", str(directory), model)
    results = json.loads((directory / f"results_{world_size}.json").read_text())

    assert len(results) == num_layouts
    for result in results:
        print({k: f"{v:.1e}" if isinstance(v, float) else v for k, v in result.items()})
    # float32 has 6e-8; sums over a few hundred tokens and over ranks are taken in another order.
    for result in results:
        assert result["loss"] < 1e-5, result
        assert result["grad_norm"] < 1e-5, result
        assert result["gradient"] < 1e-4, result
        # Adam divides by a moment that is as small as its gradient: rounding shows in the update.
        assert result["update_in_lr"] < 1e-2, result
        assert result["expert_bias"] == 0.0, result
        assert result["decode"] < 1e-5, result
        assert result["same_responses"], result
