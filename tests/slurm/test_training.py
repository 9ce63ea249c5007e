"""The quickstart on two nodes, through all that a cluster does to a job, to the same bits.

One run is warned as before a time limit, has a rank that hangs, is cancelled, submitted again,
preempted by a higher partition, and loses a rank to kill -9. What it ends with is compared with a
run of the same layout under torchrun that was left alone.
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

from tests.stages.run_results import assert_same

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.megatron,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(1200),
    pytest.mark.skipif(
        "MEGATRON_R1_SLURM" not in os.environ,
        reason="trains through half a dozen restarts, ten minutes: MEGATRON_R1_SLURM=1",
    ),
]

ROOT = Path(__file__).parents[2]
NAME = "Prüfung 1"
STEP_LIMIT_S = 20
OVERRIDES = [
    "experiment=quickstart",
    "cluster=slurm_onehost",
    f"cluster.watchdog.step_s={STEP_LIMIT_S}",
    f"run.name='{NAME}'",
    "stage.base.num_steps=3",
    "stage.base.sequences_per_step=4",
    "stage.base.num_documents=400",
    "stage.zero.num_steps=24",
    "stage.zero.prompts_per_step=2",
    "stage.zero.rollouts_per_prompt=4",
    "stage.zero.steps_per_phase=1",
    "stage.zero.checkpoint_every_steps=2",
    "stage.evaluation.num_problems=2",
    "stage.evaluation.samples_per_problem=2",
    "rollout.max_response_tokens=16",
    "data.num_problems=3000",
    "data.heldout_problems=8",
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
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return directory / "runs" / NAME


class Submitted:
    """One job of the run, and what it has come to."""

    def __init__(self, slurm, base: Path) -> None:
        self.slurm, self.base, self.run = slurm, base, base / "runs" / NAME
        self.id = slurm.submit(
            *("--nodes=2", "--ntasks-per-node=1", "--time=60"),
            "launch/r1_zero.sh",
            *OVERRIDES,
            cwd=base,
            env={
                "OMP_NUM_THREADS": "1",
                "MEGATRON_R1_PYTHON": sys.executable,
                "PYTHONPATH": str(Path(__file__).with_name("hang")),
                "HF_TOKEN": SECRET,
            },
        )

    def log(self, restart: int) -> str:
        path = self.base / f"runs/logs/r1_zero-{self.id}-restart{restart}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def steps(self) -> int:
        path = self.run / "r1_zero/metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def checkpoint(self) -> str:
        path = self.run / "r1_zero/checkpoints/latest"
        return path.read_text().strip() if path.exists() else ""

    def gets_further(self, restart: int) -> None:
        """Wait until start `restart` has saved a checkpoint and made a step more."""
        before = self.checkpoint()
        self._wait(lambda: "r1_zero  " in self.log(restart) or self.checkpoint() > before)
        self._wait(lambda: self.checkpoint() > before)
        steps = self.steps()
        self._wait(lambda: self.steps() > steps)

    def starts(self, restart: int) -> None:
        self._wait(lambda: int(self.slurm.job(self.id)["Restarts"]) == restart)

    def _wait(self, is_so: Callable[[], bool]) -> None:
        def is_so_or_over() -> bool:
            return is_so() or self.slurm.job(self.id)["JobState"] in ("FAILED", "COMPLETED")

        self.slurm.wait_until(is_so_or_over, timeout_s=300)
        assert is_so(), f"{self.slurm.job(self.id)}\n{self.all_logs()[-6000:]}"

    def all_logs(self) -> str:
        return "\n".join(self.log(restart) for restart in range(9))

    def rank(self, rank: int) -> psutil.Process:
        for process in psutil.process_iter():
            try:
                env, command = process.environ(), process.cmdline()
            except psutil.Error:
                continue
            own = (env.get("SLURM_JOB_ID"), env.get("RANK")) == (self.id, str(rank))
            if own and command[1:3] == ["-m", "megatron_r1.train"]:
                return process
        raise AssertionError(f"no rank {rank} of job {self.id}")


def check_whole(checkpoint: Path) -> None:
    """Every file that it lists is there, in its size."""
    listed = json.loads((checkpoint / "state.json").read_text())["files"]
    assert listed
    for name, size in listed.items():
        assert (checkpoint / name).stat().st_size == size


def test_what_a_cluster_does_to_a_job_does_not_show(slurm, base, untouched, one_rank):
    job = Submitted(slurm, base)
    job.gets_further(0)
    slurm.signal(job.id, "USR1")
    job.starts(1)
    assert "Stopped by SIGUSR1 after step" in job.log(0)
    batch = (base / f"r1_zero-{job.id}.out").read_text()
    assert set(re.findall(r"Exited with exit code (\d+)", batch)) == {"75"}

    job.gets_further(1)
    job.rank(1).send_signal(signal.SIGUSR2)
    stalled_s = time.monotonic()
    job.starts(2)
    assert time.monotonic() - stalled_s < STEP_LIMIT_S + 40
    summary = (job.run / f"stalls/{job.id}-restart1/summary.txt").read_text()
    assert "1 of 2 ranks wait for others; these do not:\n  rank 1 on n1: no sign" in summary
    assert "hang/sitecustomize.py" in summary and summary in unlabelled(job.log(1))
    assert "rank 0 on n0: no sign of life for 20 s, the limit of a step; waits in" in job.log(1)

    job.gets_further(2)
    cancelled_s = time.monotonic()
    slurm.cancel(job.id)
    assert slurm.wait(job.id, timeout_s=60)["JobState"] == "CANCELLED"
    assert time.monotonic() - cancelled_s < 30
    check_whole(job.run / "r1_zero/checkpoints" / job.checkpoint())

    again = Submitted(slurm, base)
    again.gets_further(0)
    slurm.submit(*("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"), cwd=base)
    again.starts(1)
    assert "Stopped by SIGTERM after step" in again.log(0)

    again.gets_further(1)
    again.rank(1).kill()
    again.starts(2)
    assert "srun: error: n1: task 1: Killed" in (base / f"r1_zero-{again.id}.out").read_text()
    assert "Connection closed by peer" in again.log(1)  # rank 0 ends by itself, with its stack

    assert slurm.wait(again.id, timeout_s=300)["JobState"] == "COMPLETED", again.all_logs()
    for stage in ("base", "r1_zero"):
        assert_same(untouched, again.run, stage)
    assert "slowest at rollouts: rank" in again.all_logs()
    for path in base.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path


def test_nemo_run_trains_to_the_same_bits(slurm, untouched, one_rank, tmp_path):
    pytest.importorskip("nemo_run", reason="needs NeMo-Run: bash launch/setup_env.sh launch")
    done = subprocess.run(
        [sys.executable, "-m", "megatron_r1.launch", *OVERRIDES],
        cwd=tmp_path,
        env={
            **slurm.env,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
            "MEGATRON_R1_PYTHON": sys.executable,
        },
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "0: | r1_zero |" in done.stdout  # the log, as it was written
    for stage in ("base", "r1_zero"):
        assert_same(untouched, tmp_path / "runs" / NAME, stage)


def unlabelled(log: str) -> str:
    """Without srun's number of the task before each line."""
    return "\n".join(line.partition(": ")[2] for line in log.split("\n"))
