"""The quickstart on two nodes, through all that a cluster does to a job, to the same bits.

One run is warned while it evaluates, has a rank that hangs, is preempted by a higher partition,
cancelled, submitted again, and loses a rank to kill -9; another, of NeMo-Run's, is warned while it
trains. What they end with is compared with a run of the same layout under torchrun that was left
alone. That Slurm does warn before a time limit is test_sbatch.py's.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.slurm.jobs import last_words, processes_of, survivors
from tests.stages.run_results import assert_same, steady

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.megatron,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(1200),
]

ROOT = Path(__file__).parents[2]
NAME = "Prüfung 1"
STEP_LIMIT_S = 15
PROBLEMS = 16
OVERRIDES = [
    "experiment=quickstart",
    "cluster=slurm_onehost",
    f"cluster.watchdog.step_s={STEP_LIMIT_S}",
    f"run.name='{NAME}'",
    "stage.base.num_steps=2",
    "stage.base.sequences_per_step=4",
    "stage.base.num_documents=400",
    "stage.zero.num_steps=24",
    "stage.zero.prompts_per_step=2",
    "stage.zero.rollouts_per_prompt=4",
    "stage.zero.steps_per_phase=1",
    "stage.zero.checkpoint_every_steps=2",
    f"stage.evaluation.num_problems={PROBLEMS}",
    "stage.evaluation.samples_per_problem=1",
    "evaluation.problems_per_part=1",
    "rollout.max_response_tokens=16",
    "data.num_problems=3000",
    f"data.heldout_problems={PROBLEMS}",
    "telemetry.tensorboard=false",
    "telemetry.stragglers_every_steps=5",
]
SECRET = "hf_0123456789_not_for_any_file"


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """Where jobs are submitted from, so that runs/ is their own."""
    directory = tmp_path_factory.mktemp("slurm")
    (directory / "launch").symlink_to(ROOT / "launch")
    return directory


@pytest.fixture(scope="module")
def untouched(tmp_path_factory) -> Path:
    """The run directory of torchrun on two processes."""
    directory = tmp_path_factory.mktemp("torchrun")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node=2", "-m", "megatron_r1.train", *OVERRIDES),
        ],
        cwd=directory,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return directory / "runs" / NAME


class Run:
    """A run of a job of the cluster, and how far it is."""

    def __init__(self, slurm, base: Path, job: str) -> None:
        self.slurm, self.base, self.run, self.id = slurm, base, base / "runs" / NAME, job

    def log(self, restart: int) -> str:
        path = self.base / f"runs/logs/r1_zero-{self.id}-restart{restart}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def steps(self) -> int:
        path = self.run / "r1_zero/metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def checkpoint(self) -> str:
        path = self.run / "r1_zero/checkpoints/latest"
        return path.read_text().strip() if path.exists() else ""

    def gets_further(self) -> None:
        """Wait until it has saved a checkpoint and made a step more."""
        before = self.checkpoint()
        self.wait(lambda: self.checkpoint() > before)
        steps = self.steps()
        self.wait(lambda: self.steps() > steps)

    def starts(self, restart: int) -> None:
        """Wait until Slurm starts it again; nothing of the start before may be left."""
        self.wait(lambda: int(self.slurm.job(self.id)["Restarts"]) == restart)
        self.wait(lambda: not survivors(self.id, restart))

    def wait(self, is_so: Callable[[], bool]) -> None:
        def is_so_or_over() -> bool:
            return is_so() or self.slurm.job(self.id)["JobState"] in ("FAILED", "COMPLETED")

        try:
            self.slurm.wait_until(is_so_or_over, timeout_s=300)
        except TimeoutError as error:
            left = survivors(self.id, 99)
            raise AssertionError(f"{error}\n{left}\n{last_words(self.base)}") from None
        assert is_so(), last_words(self.base)

    def rank(self, rank: int) -> psutil.Process:
        """Its only process that is not another one's child."""
        (process,) = (
            process
            for process in processes_of(self.id, "-m megatron_r1.train")
            if process.environ()["RANK"] == str(rank)
        )
        return process


def submit(slurm, base: Path, *more: str) -> Run:
    job = slurm.submit(
        *("--nodes=2", "--ntasks-per-node=1", "--time=60"),
        "launch/r1_zero.sh",
        *OVERRIDES,
        *more,
        cwd=base,
        env=environment(),
    )
    return Run(slurm, base, job)


def environment() -> dict[str, str]:
    """Of whoever submits."""
    return {
        "OMP_NUM_THREADS": "1",
        "MEGATRON_R1_PYTHON": sys.executable,
        "PYTHONPATH": f"{os.environ['PYTHONPATH']}:{Path(__file__).with_name('hang')}",
        "HF_TOKEN": SECRET,
    }


def assert_same_run(expected: Path, found: Path) -> None:
    for stage in ("base", "r1_zero"):
        assert_same(expected, found, stage)
        results = [
            steady(json.loads((run / f"eval/{stage}.json").read_text()))
            for run in (expected, found)
        ]
        assert results[0] == results[1]


def check_whole(checkpoint: Path) -> None:
    """Every file that it lists is there, in its size."""
    listed = json.loads((checkpoint / "state.json").read_text())["files"]
    assert listed
    for name, size in listed.items():
        assert (checkpoint / name).stat().st_size == size


def test_what_a_cluster_does_to_a_job_does_not_show(slurm, base, untouched, one_rank):
    job = submit(slurm, base, "run.overwrite=true")
    job.wait((job.run / "eval/base_parts/part_00000.json").exists)
    slurm.signal(job.id, "USR1")
    job.starts(1)
    assert "Stopped by SIGUSR1 between two parts" in job.log(0)
    batch = (base / f"r1_zero-{job.id}.out").read_text()
    assert set(re.findall(r"Exited with exit code (\d+)", batch)) == {"75"}

    job.gets_further()
    (known,) = re.findall(rf"evaluating base: (\d+) of {PROBLEMS} problems are known", job.log(1))
    assert int(known) >= 1
    job.rank(1).send_signal(signal.SIGUSR2)
    stalled_s = time.monotonic()
    job.starts(2)
    assert time.monotonic() - stalled_s < STEP_LIMIT_S + 40
    summary = (job.run / f"stalls/{job.id}-restart1/summary.txt").read_text()
    assert "1 of 2 ranks wait for others; these do not:\n  rank 1 on n1: no sign" in summary
    assert "hang/sitecustomize.py" in summary and summary in unlabelled(job.log(1))
    limit = f"no sign of life for {STEP_LIMIT_S} s, the limit of a step; waits in"
    assert f"rank 0 on n0: {limit}" in job.log(1)

    job.gets_further()
    slurm.submit(*("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"), cwd=base)
    job.starts(3)
    assert "Stopped by SIGTERM after step" in job.log(2)

    job.gets_further()
    cancelled_s = time.monotonic()
    slurm.cancel(job.id)
    assert slurm.wait(job.id, timeout_s=60)["JobState"] == "CANCELLED"
    assert time.monotonic() - cancelled_s < 30
    check_whole(job.run / "r1_zero/checkpoints" / job.checkpoint())

    again = submit(slurm, base)
    again.gets_further()
    again.rank(1).kill()
    again.starts(1)
    assert "srun: error: n1: task 1: Killed" in (base / f"r1_zero-{again.id}.out").read_text()
    # Rank 0 ends by itself, with its stack: gloo finds the connection closed, or reset.
    assert re.search("Connection (closed|reset) by peer", again.log(0))

    assert slurm.wait(again.id, timeout_s=300)["JobState"] == "COMPLETED", last_words(base)
    assert_same_run(untouched, again.run)
    assert "slowest at rollouts: rank" in job.log(3) + again.log(0) + again.log(1)
    for path in base.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_nemo_run_trains_to_the_same_bits(slurm, untouched, one_rank, tmp_path):
    """Warned once, which its script answers by asking for another start."""
    pytest.importorskip("nemo_run", reason="needs NeMo-Run: bash launch/setup_env.sh launch")
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        launcher = subprocess.Popen(
            [sys.executable, "-m", "megatron_r1.launch", *OVERRIDES],
            cwd=tmp_path,
            env={**slurm.env, **environment()},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    submitted = re.compile(r"^tiny_r1_zero: job (\d+), logs in", re.MULTILINE)
    try:
        slurm.wait_until(lambda: submitted.search(output.read_text()) is not None, timeout_s=120)
        job = Run(slurm, tmp_path, submitted.search(output.read_text())[1])
        job.gets_further()
        slurm.signal(job.id, "USR1")
        job.starts(1)
        assert launcher.wait(timeout=300) == 0, last_words(tmp_path)
    finally:
        launcher.kill()
    said = output.read_text()
    assert "0: | r1_zero |" in said and "0: Stopped by SIGUSR1 after step" in said  # as written
    assert_same_run(untouched, job.run)


def unlabelled(log: str) -> str:
    """Without srun's number of the task before each line."""
    return "\n".join(line.partition(": ")[2] for line in log.split("\n"))
