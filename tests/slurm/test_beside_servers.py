"""A heterogeneous job: ranks on one node, an SGLang server on another, and either one killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import psutil
import pytest

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.megatron,
    pytest.mark.sglang,
    pytest.mark.xdist_group("slurm"),
    pytest.mark.timeout(900),
]

ROOT = Path(__file__).parents[2]
OVERRIDES = [
    "experiment=quickstart",
    "cluster=slurm_onehost",
    "cluster.nodes=1",
    "cluster.rollout_nodes=1",
    "rollout=sglang",
    "run.name=both",
    "model.num_layers=2",
    "stage.base.num_steps=2",
    "stage.base.sequences_per_step=4",
    "stage.base.num_documents=400",
    "stage.zero.num_steps=6",
    "stage.zero.prompts_per_step=2",
    "stage.zero.rollouts_per_prompt=2",
    "stage.zero.steps_per_phase=1",
    "stage.zero.checkpoint_every_steps=1",
    "stage.evaluation.num_problems=1",
    "stage.evaluation.samples_per_problem=1",
    "rollout.max_response_tokens=8",
    "data.num_problems=3000",
    "data.heldout_problems=8",
    "telemetry.tensorboard=false",
]


class Job:
    """The submitted job, and what runs of it."""

    def __init__(self, slurm, base: Path) -> None:
        self.slurm, self.base, self.run = slurm, base, base / "runs/both"
        self.id = slurm.submit(
            *("--nodes=1", "--ntasks-per-node=1", "--time=60", ":", "--nodes=1"),
            *("--ntasks-per-node=1", "launch/r1_zero.sh", *OVERRIDES),
            cwd=base,
            env={"OMP_NUM_THREADS": "1", "MEGATRON_R1_PYTHON": sys.executable},
        )

    def wait_for_steps(self, restart: int, steps: int) -> None:
        """Until start `restart` has a server, and the run has made so many updates."""
        board = self.run / f"engine/board/{self.id}-restart{restart}/node_0.json"

        def is_so() -> bool:
            state = self.slurm.job(self.id)["JobState"]
            assert state not in ("FAILED", "COMPLETED"), self.logs()
            return board.exists() and self.steps() >= steps

        self.slurm.wait_until(is_so, timeout_s=300)

    def steps(self) -> int:
        path = self.run / "r1_zero/metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def restarts(self, count: int) -> None:
        self.slurm.wait_until(
            lambda: int(self.slurm.job(self.id).get("Restarts", 0)) == count, timeout_s=120
        )

    def processes(self, words: str) -> list[psutil.Process]:
        """Of this run, with these words in their command; the first is not another's child."""
        found = []
        for process in psutil.process_iter():
            try:
                env, command = process.environ(), " ".join(process.cmdline())
            except psutil.Error:
                continue
            if env.get("SLURM_JOB_ID") == self.id and words in command:
                found.append(process)
        return sorted(found, key=psutil.Process.create_time)

    def logs(self) -> str:
        files = sorted(self.base.rglob("*.log")) + sorted(self.base.glob("*.out"))
        return "\n".join(f"=== {file}\n{file.read_text()[-1200:]}" for file in files)


def test_ranks_and_servers_live_and_end_together(slurm, tmp_path):
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    job = Job(slurm, tmp_path)

    job.wait_for_steps(0, 1)
    job.processes("-m megatron_r1.train")[0].kill()
    job.restarts(1)
    assert not job.processes("sglang.launch_server")  # the first start's have ended

    job.wait_for_steps(1, job.steps() + 1)
    job.processes("-m megatron_r1.serve")[0].kill()
    job.restarts(2)
    assert not job.processes("megatron_r1") and not job.processes("sglang.launch_server")

    state = slurm.wait(job.id, timeout_s=300)["JobState"]
    assert state == "COMPLETED", job.logs()
    rows = [
        json.loads(line) for line in (job.run / "r1_zero/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    report = json.loads((job.run / f"engine/board/{job.id}-restart2/node_0.json").read_text())
    assert report["has_ended"] and report["failure"] is None
    assert not job.processes("sglang.launch_server")
