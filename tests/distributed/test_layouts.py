"""Layout invariance: one checkpoint gives one loss, one gradient and one update in every layout.

Combinations of all kinds of parallelism are compared with one process, gradient by gradient. The
same processes go through all layouts of a world size. MEGATRON_R1_LAYOUTS=20 makes each random draw
that large, and adds one of 8 processes.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.layout_cases import OTHER_FAMILIES, Case, all_cases, draw_cases, settings

WORKER = Path(__file__).with_name("layout_worker.py")
ROOT = Path(__file__).parents[2]
NUM_DRAWN = int(os.environ.get("MEGATRON_R1_LAYOUTS", "0"))
# Eight ranks on two cores take minutes to start: only where a larger draw is asked for.
DRAWS = {2: max(5, NUM_DRAWN), 4: max(6, NUM_DRAWN)} | ({8: max(6, NUM_DRAWN)} if NUM_DRAWN else {})

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    # Ranks on two busy cores wait for each other.
    pytest.mark.timeout(900 + 180 * NUM_DRAWN),
]


def run(*command: str) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *command], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-6000:]


@pytest.fixture(scope="module", params=["tiny_v3", "tiny_dense"])
def reference(request, tmp_path_factory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    run(str(WORKER), "reference", str(directory), request.param)
    return request.param, directory


@pytest.mark.parametrize("model", OTHER_FAMILIES)
def test_other_families_compute_the_same_on_two_ranks(model, tmp_path):
    run(str(WORKER), "reference", str(tmp_path), model)
    compare((model, tmp_path), 2, list(OTHER_FAMILIES[model]))


def compare(reference: tuple[str, Path], world_size: int, cases: list[Case]) -> None:
    """Run the cases with `world_size` processes and hold each against one process."""
    model, directory = reference
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world_size}"]
    run(*torchrun, str(WORKER), "compare", str(directory), model, json.dumps(cases))
    results = json.loads((directory / f"results_{world_size}.json").read_text())
    assert [result["layout"] for result in results] == cases
    for result in results:
        print({k: f"{v:.1e}" if isinstance(v, float) else v for k, v in result.items()})
    for result in results:
        check(result)


def check(result: dict[str, Any]) -> None:
    # float32 has 6e-8; sums over a few hundred tokens and over ranks are taken in another order.
    assert result["loss"] < 1e-5, result
    assert result["grad_norm"] < 1e-5, result
    assert result["gradient"] < 1e-4, result
    # Adam divides by a moment that is as small as its gradient: rounding shows in the update.
    assert result["update_in_lr"] < 1e-2, result
    assert result["expert_bias"] == 0.0, result
    assert result["decode"] < 1e-5, result
    assert result["score"] < 1e-5, result
    assert result["value_loss"] < 1e-5, result
    assert result["value_grad_norm"] < 1e-5, result
    assert result["value_gradient"] < 1e-4, result
    assert result["same_responses"], result


@pytest.mark.parametrize(("world_size", "count"), DRAWS.items())
def test_layouts_drawn_at_random_compute_the_same(reference, world_size, count):
    model = reference[0]
    cases = draw_cases(world_size, model, count)
    # However few are drawn, each setting that there is at this world size is in one of them.
    every = {s for case in all_cases(world_size, model) for s in settings(case, world_size)}
    assert {s for case in cases for s in settings(case, world_size)} == every
    compare(reference, world_size, cases)
