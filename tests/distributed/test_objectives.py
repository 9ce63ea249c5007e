"""DPO, distillation on logits and PPO's critic take the same steps in every kind of layout."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.distributed.worlds import Worlds

WORKER = "tests.distributed.objectives_worker"
LAYOUTS = [
    {},  # data 2
    {"tensor": 2},
    {"pipeline": 2, "virtual_pipeline": 2},
    {"context": 2},
]

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.timeout(900),
]


def run(worlds: Worlds, path: Path, world_size: int, layouts: list[dict]) -> list[dict[str, float]]:
    failure = worlds.run(WORKER, world_size, str(path), layouts)
    assert not failure, failure
    return json.loads(path.read_text())


def test_two_ranks_find_what_one_does(worlds, tmp_path):
    (expected,) = run(worlds, tmp_path / "one.json", 1, [{}])
    assert len(expected) == 3 * 4 + 1
    for layout, found in zip(LAYOUTS, run(worlds, tmp_path / "two.json", 2, LAYOUTS), strict=True):
        # The first step has float32's rounding; Adam, whose first step is the gradient's sign,
        # enlarges it where a gradient is near 0.
        for name, value in found.items():
            tolerance = 1e-3 if name.endswith("2") else 1e-5
            assert value == pytest.approx(expected[name], rel=tolerance), (layout, name)
