"""The simulation of FP8 under tensor and sequence parallelism."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.distributed.worlds import Worlds

WORKER = "tests.distributed.fp8_worker"
WHOLE, CUT = 512, 320
"""Of two ranks each has two whole tiles of 128, or one and a quarter."""

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.timeout(900),
]


def joined(path: Path, width: int, sequence: bool, world_size: int) -> dict[str, torch.Tensor]:
    """What all ranks hold, put together."""
    ranks = [
        torch.load(path / f"{width}_{sequence}_{rank}_{world_size}.pt")
        for rank in range(world_size)
    ]
    axes = dict(first=0, second=1) | (dict(x=0, y=0) if sequence else {})
    return {
        name: torch.cat([rank[name] for rank in ranks], dim=axes[name])
        if name in axes
        else ranks[-1][name]
        for name in ranks[0]
    }


@pytest.mark.parametrize("sequence", [False, True])
def test_shards_of_whole_tiles_are_quantised_as_the_whole_is(worlds: Worlds, sequence, tmp_path):
    for world_size in (1, 2):
        failure = worlds.run(WORKER, world_size, str(tmp_path), [WHOLE, CUT], sequence)
        assert not failure, failure
    gaps = {}
    for width in (WHOLE, CUT):
        one, two = (joined(tmp_path, width, sequence, world_size) for world_size in (1, 2))
        assert one.keys() == two.keys()
        gaps[width] = {
            name: float((two[name] - one[name]).norm() / one[name].norm()) for name in one
        }
    # The same codes, added up in another order.
    assert max(gaps[WHOLE].values()) < 1e-6, gaps
    # Where a rank's part ends inside a tile, tiles lie otherwise, and so do the roundings.
    assert max(gaps[CUT].values()) > 3e-3, gaps
