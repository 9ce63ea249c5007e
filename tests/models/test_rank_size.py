"""Ranks built on the meta device: their shares add up to the model, whatever the layout."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.models.size import count_parameters

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("ranks")]

WORKER = Path(__file__).with_name("rank_size_worker.py")


def sizes(world_size: int, ranks: list[int], *overrides: str) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(WORKER), str(world_size), ",".join(map(str, ranks)), *overrides],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [{**row, "share": Fraction(*row["share"])} for row in rows]


@pytest.mark.parametrize(
    "overrides",
    [
        ["model=tiny_v3", "model.num_mtp_layers=1", "parallel.pipeline=2", "parallel.expert=2"],
        [
            "model=tiny_v3",
            "model.num_layers=5",
            "parallel.pipeline=2",
            "parallel.virtual_pipeline=2",
            "parallel.tensor=2",
            "parallel.expert_tensor=2",
        ],
        ["model=tiny_v3", "parallel.context=2", "parallel.tensor=2", "parallel.expert=4"],
        ["model=tiny_dense", "parallel.pipeline=2", "parallel.tensor=2"],
    ],
)
def test_shares_of_all_ranks_add_up_to_the_model(overrides):
    ranks = sizes(8, list(range(8)), *overrides)
    counted = count_parameters(load_config(overrides).model)
    assert sum(row["share"] for row in ranks) == counted.total + counted.mtp
    assert all(row["held"] >= row["share"] for row in ranks)


def test_deepseek_v3_over_1024_ranks():
    # 16 stages of 64 ranks: rank 64 s is the first of stage s. The 14 stages in the middle have
    # four sparse layers each.
    overrides = ["model=deepseek_v3", "model.num_mtp_layers=1", "parallel.pipeline=16"]
    overrides += ["parallel.expert=64", "parallel.tensor=4"]
    first, middle, other_middle, last = sizes(1024, [0, 64, 64 * 14, 64 * 15], *overrides)
    assert middle["share"] == other_middle["share"]
    total = 64 * (first["share"] + 14 * middle["share"] + last["share"])
    assert total == 671_026_404_352 + 11_610_067_968
    # Four layers with 4 of 256 experts each: attention over 4 ranks but for the parts that every
    # rank holds, the shared expert over 4 ranks, router and norms whole.
    replicated = 7168 * 1536 + 1536 + 7168 * 576 + 512 + 2 * 7168 + 7168 * 256
    split = 187_107_328 - (7168 * 1536 + 1536 + 7168 * 576 + 512) + 3 * 7168 * 2048
    assert middle["held"] == 4 * (replicated + split // 4 + 4 * 3 * 7168 * 2048)
    assert all(row["cpu_s"] < 60 and row["peak_gb"] < 4 for row in (first, middle, last))
