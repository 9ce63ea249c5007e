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
from pathlib import Path

import pytest

from megatron_r1.errors import RunDirError
from megatron_r1.telemetry.lock import DirectoryLock
from tests.stages.run_results import assert_same, metrics, steady

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("R1_KILLS", "5"))
STEPS = max(12, 4 * KILLS)
RANKS = int(os.environ.get("R1_KILL_RANKS", "1"))

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.timeout(1800 + 60 * KILLS),
]

OVERRIDES = [
    "experiment=quickstart",
    f"stage.base.num_steps={STEPS}",
    "stage.base.sequences_per_step=8",
    "stage.base.num_documents=500",
    "stage.base.checkpoint_every_steps=3",
    f"stage.zero.num_steps={STEPS}",
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
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-4000:]
    return root / "quickstart"


def partial_checkpoints(root: Path) -> set[int]:
    """Inodes of checkpoints that are being written, or that a kill left half-written."""
    return {path.stat().st_ino for path in root.glob("quickstart/*/checkpoints/.partial_*")}


def lines_of_metrics(root: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in root.glob("quickstart/*/metrics.jsonl"))


def kill(root: Path, rng: random.Random, *, during_checkpoint: bool) -> None:
    """Start, let it work for a few steps or until it writes a checkpoint, then a little; kill."""
    stale, lines = partial_checkpoints(root), lines_of_metrics(root)
    steps = rng.randint(1, 3)
    process = start(root)
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        if during_checkpoint and partial_checkpoints(root) - stale:
            break
        # A resumed run cuts off the lines behind its checkpoint, so it may first have fewer.
        lines = min(lines, lines_of_metrics(root))
        if not during_checkpoint and lines_of_metrics(root) >= lines + steps:
            break
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.3))
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path:
    """A run that was left alone."""
    return finish(tmp_path_factory.mktemp("untouched"))


def test_an_evaluation_that_is_warned_goes_on_where_it_was(tmp_path, untouched):
    """The README's command, with Slurm's warning between two of its problems."""
    parts = tmp_path / "quickstart/eval/heldout/heldout_parts"

    def evaluate() -> subprocess.Popen:
        settings = ["evaluation.problems_per_part=1", f"run.root={tmp_path}"]
        return subprocess.Popen(
            [sys.executable, "-m", "megatron_r1.evaluate", untouched, *OVERRIDES, *settings],
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    warned = evaluate()
    while not (parts / "part_00000.json").exists() and warned.poll() is None:
        time.sleep(0.01)
    with pytest.raises(RunDirError, match=f"in use by process {warned.pid}"):
        DirectoryLock(parts.parent)
    warned.send_signal(signal.SIGUSR1)
    said, _ = warned.communicate(timeout=300)
    assert warned.returncode == 75, said[-3000:]
    written = len(list(parts.glob("part_*.json")))
    assert 1 <= written < 8

    again = evaluate()
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said[-3000:]
    assert f"evaluating heldout: {written} of 8 problems are known" in said
    result = json.loads((tmp_path / "quickstart/eval/heldout/heldout.json").read_text())
    assert "| heldout | pass@1 " in said and not parts.exists() and result["question"]


def test_a_killed_run_ends_with_the_same_bits(tmp_path, untouched, one_rank):
    rng = random.Random(12)
    root = tmp_path / "killed"
    for number in range(KILLS):
        kill(root, rng, during_checkpoint=number % 2 == 0)
    survivor = finish(root)

    for stage in ("base", "r1_zero"):
        assert_same(untouched, survivor, stage)
    rows = metrics(survivor, "r1_zero")
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))  # each step once
    expected, found = (
        json.loads((run / "summary.json").read_text())["r1_zero"] for run in (untouched, survivor)
    )
    assert steady(expected) == steady(found)
