"""Layout invariance: one checkpoint gives one loss, one gradient and one update in every layout.

Combinations of all kinds of parallelism are compared with one process, gradient by gradient. The
same processes go through all layouts of a world size. Of 8 processes there is one layout for each
model, with all degrees at once; MEGATRON_R1_LAYOUTS=20 makes every random draw that large.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.distributed.layout_cases import OTHER_FAMILIES, Case, all_cases, draw_cases, settings
from tests.distributed.worlds import Worlds

WORKER = "tests.distributed.layout_worker"
NUM_DRAWN = int(os.environ.get("MEGATRON_R1_LAYOUTS", "0"))
DRAWS = {2: max(4, NUM_DRAWN), 4: max(6, NUM_DRAWN), 8: max(1, NUM_DRAWN)}

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    # Ranks on two busy cores wait for each other.
    pytest.mark.timeout(900 + 180 * NUM_DRAWN),
]


def make_reference(worlds: Worlds, model: str, directory: Path) -> None:
    failure = worlds.run(WORKER, 1, "reference", str(directory), model)
    assert not failure, failure


@pytest.fixture(scope="module", params=["tiny_v3", "tiny_dense"])
def reference(request, worlds, tmp_path_factory) -> tuple[str, Path]:
    directory = tmp_path_factory.mktemp(request.param)
    make_reference(worlds, request.param, directory)
    return request.param, directory


@pytest.mark.parametrize("model", OTHER_FAMILIES)
def test_other_families_compute_the_same_on_two_ranks(model, worlds, tmp_path):
    make_reference(worlds, model, tmp_path)
    compare(worlds, (model, tmp_path), 2, list(OTHER_FAMILIES[model]))


def test_attention_of_packed_streams_computes_the_same(worlds, reference):
    """As Transformer Engine is handed it. With two stages streams are filled up at their end."""
    cases = [
        {"context": 2, "tensor": 2, "packed": True},
        {"context": 2, "pipeline": 2, "recompute": "selective", "packed": True},
    ]
    compare(worlds, reference, 4, cases)


def compare(
    worlds: Worlds, reference: tuple[str, Path], world_size: int, cases: list[Case]
) -> None:
    """Run the cases with `world_size` processes and hold each against one process."""
    model, directory = reference
    failure = worlds.run(WORKER, world_size, "compare", str(directory), model, cases)
    assert not failure, failure
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
def test_layouts_drawn_at_random_compute_the_same(worlds, reference, world_size, count):
    model = reference[0]
    cases = draw_cases(world_size, model, count)
    if count >= 6 or world_size == 2:  # enough for each setting that there is to be in one of them
        every = {s for case in all_cases(world_size, model) for s in settings(case, world_size)}
        assert {s for case in cases for s in settings(case, world_size)} == every
    compare(worlds, reference, world_size, cases)
