"""A heterogeneous job: ranks on one node, an SGLang server on another, and either one killed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.slurm.jobs import holders, last_words, processes_of, survivors

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
            assert state not in ("FAILED", "COMPLETED"), last_words(self.base)
            return board.exists() and self.steps() >= steps

        self.slurm.wait_until(is_so, timeout_s=300)

    def steps(self) -> int:
        path = self.run / "r1_zero/metrics.jsonl"
        return path.read_bytes().count(b"\n") if path.exists() else 0

    def restarts(self, count: int) -> None:
        """Until Slurm starts it again; nothing of the start before may be left."""
        self.slurm.wait_until(
            lambda: int(self.slurm.job(self.id).get("Restarts", 0)) == count, timeout_s=120
        )
        self.slurm.wait_until(
            lambda: not survivors(self.id, count) and not holders(self.run / "engine"), timeout_s=20
        )

    def servers_log(self, restart: int) -> str:
        return (self.base / f"runs/logs/r1_zero-{self.id}-restart{restart}-servers.log").read_text()


def test_ranks_and_servers_live_and_end_together(slurm, tmp_path):
    (tmp_path / "launch").symlink_to(ROOT / "launch")
    job = Job(slurm, tmp_path)

    job.wait_for_steps(0, 1)
    (rank,) = processes_of(job.id, "-m megatron_r1.train")
    rank.kill()
    job.restarts(1)
    # In order: the node heard no more of its trainer, and had the time to end its servers.
    assert "servers ended: the trainer is gone" in job.servers_log(0)

    job.wait_for_steps(1, job.steps() + 1)
    (server,) = processes_of(job.id, "-m megatron_r1.serve")
    server.kill()
    job.restarts(2)

    state = slurm.wait(job.id, timeout_s=300)["JobState"]
    assert state == "COMPLETED", last_words(tmp_path)
    rows = [
        json.loads(line) for line in (job.run / "r1_zero/metrics.jsonl").read_text().splitlines()
    ]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    report = json.loads((job.run / f"engine/board/{job.id}-restart2/node_0.json").read_text())
    assert report["has_ended"] and report["failure"] is None
    assert not processes_of(job.id) and not holders(job.run / "engine")
