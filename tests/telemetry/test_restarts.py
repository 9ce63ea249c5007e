"""Restarts that find the checkpoint that the one before them found."""

from __future__ import annotations

import pytest

from megatron_r1.errors import NoProgressError
from megatron_r1.telemetry.restarts import check_progress


def start(run_dir, restart: int, *, job: str = "7", rank: str = "0") -> None:
    env = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(restart), "RANK": rank}
    check_progress(run_dir, env, allowed=3)


def save(run_dir, name: str) -> None:
    (run_dir / "r1_zero/checkpoints").mkdir(parents=True, exist_ok=True)
    (run_dir / "r1_zero/checkpoints/latest").write_text(f"{name}\n")


def test_the_third_restart_in_vain_ends_the_job_on_every_rank(tmp_path):
    save(tmp_path, "step_000010")
    start(tmp_path, 0)
    start(tmp_path, 1)
    start(tmp_path, 2)
    for rank in ("1", "0"):
        with pytest.raises(NoProgressError, match="3 restarts of job 7 .*r1_zero: step_000010"):
            start(tmp_path, 3, rank=rank)
    start(tmp_path, 1, job="8")  # submitted again: a fresh count
    start(tmp_path, 2, job="8")


def test_a_newer_checkpoint_starts_the_count_again(tmp_path):
    for restart in range(1, 8):
        if restart % 2:
            save(tmp_path, f"step_{restart:06d}")
        start(tmp_path, restart)


@pytest.mark.parametrize(
    "made", ["data/samples/part_{}.jsonl", "one/data/teacher.jsonl", "two/eval/all/{}.json"]
)
def test_samples_replies_and_results_are_progress_too(tmp_path, made):
    for restart in range(1, 6):
        path = tmp_path / made.format(restart)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write("{}\n")
        start(tmp_path, restart)
    start(tmp_path, 6)
    with pytest.raises(NoProgressError, match=r"no newer checkpoint, sample or result \(.* bytes"):
        start(tmp_path, 7)


def test_a_start_that_is_no_restart_leaves_no_trace(tmp_path):
    check_progress(tmp_path / "run", {}, allowed=1)
    start(tmp_path / "run", 0)
    assert not (tmp_path / "run").exists()
