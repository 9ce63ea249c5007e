"""`kill -9` at random moments, during checkpoints too: the run ends as if nothing had happened.

R1_KILLS=20 pytest tests/stages/test_resume.py       more kills than the default
R1_KILL_RANKS=2                                      the same under torchrun
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("R1_KILLS", "5"))
RANKS = int(os.environ.get("R1_KILL_RANKS", "1"))

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("ranks"), pytest.mark.timeout(1800)]

OVERRIDES = [
    "experiment=quickstart",
    "stage.base.num_steps=12",
    "stage.base.sequences_per_step=8",
    "stage.base.num_documents=500",
    "stage.base.checkpoint_every_steps=3",
    "stage.zero.num_steps=12",
    "stage.zero.prompts_per_step=2",
    "stage.zero.rollouts_per_prompt=4",
    "stage.zero.reference_refresh_steps=3",
    "stage.zero.checkpoint_every_steps=2",
    "stage.evaluation.num_problems=4",
    "stage.evaluation.samples_per_problem=2",
    "data.num_problems=3000",
    "data.heldout_problems=8",
    "telemetry.tensorboard=false",
]


def start(root: Path) -> subprocess.Popen:
    module = ["-m", "megatron_r1.train", *OVERRIDES, f"run.root={root}"]
    if RANKS > 1:
        module = [
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc-per-node={RANKS}",
            *module,
        ]
    return subprocess.Popen(
        [sys.executable, *module],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(root: Path) -> Path:
    process = start(root)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output[-4000:]
    return root / "quickstart"


def kill(root: Path, rng: random.Random, *, during_checkpoint: str | None) -> bool:
    """Start, wait for a moment or a checkpoint being written, kill. False: it had ended."""
    process = start(root)
    deadline = time.monotonic() + 60
    if during_checkpoint:
        while time.monotonic() < deadline and process.poll() is None:
            if list(root.glob(f"quickstart/{during_checkpoint}/checkpoints/.partial_*")):
                time.sleep(rng.uniform(0, 0.3))
                break
            time.sleep(0.005)
    else:
        moment = time.monotonic() + rng.uniform(4, 16)
        while time.monotonic() < moment and process.poll() is None:
            time.sleep(0.01)
    ended = process.poll() is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.communicate()
    return not ended


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    from megatron.core import dist_checkpointing

    from megatron_r1.checkpoint.store import resolve_checkpoint

    path = resolve_checkpoint(run / stage) / "policy"
    return dict(flatten("", dist_checkpointing.load_plain_tensors(str(path))))


def flatten(prefix: str, value: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights, Adam's moments and step counts, by name."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(f"{prefix}/{key}", item)


def steady(row: dict) -> dict:
    """A line of metrics.jsonl without what a clock put into it."""
    return {k: v for k, v in row.items() if not k.startswith("time/") and "per_s" not in k}


def test_a_killed_run_ends_with_the_same_bits(tmp_path, one_rank):
    untouched = finish(tmp_path / "untouched")
    rng = random.Random(12)
    root = tmp_path / "killed"
    moments = ("base", "r1_zero", None)
    killed = sum(kill(root, rng, during_checkpoint=moments[k % 3]) for k in range(KILLS))
    assert killed >= KILLS // 2, "the run ended before it could be killed"
    survivor = finish(root)

    for stage in ("base", "r1_zero"):
        expected, found = weights(untouched, stage), weights(survivor, stage)
        assert len(expected) > 200  # weights and two moments each
        assert expected.keys() == found.keys()
        different = [name for name in expected if not torch.equal(expected[name], found[name])]
        assert not different, f"{stage}: {different[:5]}"
    rows = [
        [json.loads(line) for line in (run / "r1_zero/metrics.jsonl").read_text().splitlines()]
        for run in (untouched, survivor)
    ]
    assert [row["step"] for row in rows[1]] == list(range(1, 13))  # each step once
    assert [steady(row) for row in rows[0]] == [steady(row) for row in rows[1]]
    summaries = [json.loads((run / "summary.json").read_text()) for run in (untouched, survivor)]
    assert summaries[0]["r1_zero"] == summaries[1]["r1_zero"]
