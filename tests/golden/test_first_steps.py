"""The first steps of a tiny run, in full precision: a change of numerics must be meant.

Renew tests/golden/first_steps.json, and say why in the commit, with

    python tests/golden/test_first_steps.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).with_name("first_steps.json")
KEPT = ("step", "train/loss", "train/grad_norm", "reward/mean", "algo/kl_ref", "algo/entropy")
OVERRIDES = [
    "experiment=quickstart",
    "stage.base.num_steps=4",
    "stage.base.sequences_per_step=8",
    "stage.base.num_documents=500",
    "stage.zero.num_steps=4",
    "stage.zero.prompts_per_step=2",
    "stage.zero.rollouts_per_prompt=4",
    "stage.zero.reference_refresh_steps=2",
    "stage.evaluation.num_problems=2",
    "stage.evaluation.samples_per_problem=2",
    "data.num_problems=3000",
    "data.heldout_problems=8",
    "telemetry.tensorboard=false",
]


def first_steps(root: Path) -> dict[str, list[dict[str, float]]]:
    """What a run of one rank logs."""
    subprocess.run(
        [sys.executable, "-m", "megatron_r1.train", *OVERRIDES, f"run.root={root}"],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        check=True,
        timeout=300,
    )
    return {
        stage: [
            {name: value for name, value in json.loads(line).items() if name in KEPT}
            for line in (root / "quickstart" / stage / "metrics.jsonl").read_text().splitlines()
        ]
        for stage in ("base", "r1_zero")
    }


@pytest.mark.megatron
@pytest.mark.xdist_group("commands")
def test_the_first_steps_are_what_they_were(tmp_path):
    golden, found = json.loads(GOLDEN.read_text()), first_steps(tmp_path)
    assert golden.keys() == found.keys()
    for stage in golden:
        for expected, row in zip(golden[stage], found[stage], strict=True):
            # Another processor multiplies in another order, and Adam enlarges that in a few steps.
            assert row == pytest.approx(expected, rel=1e-3, abs=1e-6), (stage, row)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        GOLDEN.write_text(json.dumps(first_steps(Path(directory)), indent=1) + "\n")
