"""`sbatch launch/r1_zero.sh` up to the program: ranks, overrides, what ends a job and what not."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

ROOT = Path(__file__).parents[2]
PROBE = Path(__file__).with_name("probe.py")
AWKWARD = [
    "run.name=a b",
    "note='single' \"double\"",
    "path=$HOME/${oc.env:HOME}/$$/$(id)/`id`",
    "dict={a: 1, b: [x, y]}",
    "text=Grüße, 数学 \\ * ? ~ ; & | < > # !",
    "empty=",
]


@pytest.fixture
def checkout(tmp_path):
    """A directory to submit from, whose runs/ are its own."""
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    return tmp_path


@pytest.fixture(scope="module")
def warned(slurm, tmp_path_factory):
    """A job of two minutes, warned 100 s before, and where it was submitted. It waits meanwhile."""
    directory = tmp_path_factory.mktemp("warned")
    (directory / "launch").symlink_to(ROOT / "launch")
    limit = ["--time=2", "--signal=USR1@100", "--partition=urgent", "--gpus-per-node=0"]
    return submit(slurm, directory, options=limit, PROBE_AWAITS="SIGUSR1"), directory


def submit(slurm, checkout, *overrides: str, options=(), **env: str) -> str:
    return slurm.submit(
        "--nodes=2",
        "--ntasks-per-node=2",
        *options,
        "launch/r1_zero.sh",
        *overrides,
        cwd=checkout,
        env={
            "MEGATRON_R1_PYTHON": str(PROBE),
            "PROBE_DIR": str(checkout),
            "OMP_NUM_THREADS": "",
            **env,
        },
    )


def seen_by(checkout, rank: int) -> dict:
    return json.loads((checkout / f"rank{rank}.json").read_text())


def test_every_task_knows_its_rank_and_meets_the_others(slurm, checkout, warned):
    more = {"MEGATRON_R1_SRUN_ARGS": "--no-kill --export=ALL,NOTE=seen"}
    job = submit(slurm, checkout, *AWKWARD, options=["--cpus-per-task=3"], **more)
    assert slurm.wait(job, timeout_s=60)["JobState"] == "COMPLETED"
    for rank in range(4):
        seen = seen_by(checkout, rank)
        assert seen["sum"] == 0 + 1 + 2 + 3
        assert (seen["LOCAL_RANK"], seen["WORLD_SIZE"]) == (str(rank % 2), "4")
        assert seen["SLURMD_NODENAME"] == f"n{rank // 2}"
        assert (seen["OMP_NUM_THREADS"], seen["NOTE"]) == ("3", "seen")
        program = ["-m", "megatron_r1.train", "cluster=slurm", "stage=r1_zero"]
        assert seen["argv"] == [*program, *AWKWARD]


def test_a_mistake_ends_the_job_and_a_crash_is_started_again(slurm, checkout):
    mistake = submit(slurm, checkout, "experiment=quickstart", "cluster=local", PROBE_EXIT="2")
    ended = slurm.wait(mistake, timeout_s=60)
    assert (ended["JobState"], ended["ExitCode"], ended["Restarts"]) == ("FAILED", "2:0", "0")
    argv = ["-m", "megatron_r1.train", "experiment=quickstart", "cluster=local"]
    assert seen_by(checkout, 3)["argv"] == argv

    crash = submit(slurm, checkout, PROBE_EXIT="9", PROBE_SLEEP_S="1")
    second = checkout / f"runs/logs/r1_zero-{crash}-restart1.log"
    slurm.wait_until(second.exists, timeout_s=60)
    slurm.cancel(crash)
    assert slurm.wait(crash, timeout_s=60)["Restarts"] == "1"
    logs = sorted(path.name for path in (checkout / "runs/logs").glob(f"*-{crash}-*"))
    assert logs == [f"r1_zero-{crash}-restart{n}.log" for n in (0, 1)]


def test_the_header_is_one_that_slurm_takes(slurm, checkout):
    for script in sorted((ROOT / "launch").glob("*.sh")):
        if "#SBATCH" in script.read_text():
            slurm.submit("--test-only", str(script), cwd=checkout)


def test_slurm_warns_every_rank_before_the_time_limit(slurm, warned):
    job, directory = warned
    ended = slurm.wait(job, timeout_s=150)
    batch = (directory / f"r1_zero-{job}.out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), batch
    assert set(re.findall(r"Exited with exit code (\d+)", batch)) == {"75"}, batch


def test_a_job_whose_preemption_cancels_asks_for_another_start_itself(slurm, checkout):
    """Within the partition's GraceTime. A job that requeues is preempted in test_training.py."""
    job = submit(slurm, checkout, options=["--partition=cancels"], PROBE_AWAITS="SIGTERM")
    slurm.wait_until((checkout / "rank3.json").exists, timeout_s=60)
    slurm.submit(*("--partition=urgent", "--nodes=2", "--exclusive", "--wrap=true"), cwd=checkout)
    ended = slurm.wait(job, timeout_s=60)
    batch = (checkout / f"r1_zero-{job}.out").read_text()
    assert (ended["JobState"], ended["Restarts"]) == ("COMPLETED", "1"), batch
