"""`launch/quickstart.sh` as a user starts it: two ranks, exit codes, nothing left behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TINY = [
    "stage.base.num_steps=2",
    "stage.base.sequences_per_step=4",
    "stage.base.num_documents=400",
    "stage.zero.num_steps=2",
    "stage.zero.prompts_per_step=2",
    "stage.zero.rollouts_per_prompt=2",
    "stage.evaluation.num_problems=2",
    "stage.evaluation.samples_per_problem=2",
    "data.num_problems=3000",
    "data.heldout_problems=8",
    "telemetry.tensorboard=false",
]

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("ranks")]


def quickstart(*overrides: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", "launch/quickstart.sh", *TINY, *overrides],
        cwd=ROOT,
        env={
            **os.environ,
            "NPROC": "2",
            "MEGATRON_R1_VENV": sys.prefix,
            "MEGATRON_R1_SKIP_INSTALL": "1",
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen, *, timeout_s: float = 240) -> tuple[int, str]:
    output, _ = process.communicate(timeout=timeout_s)
    return process.returncode, output


def ranks_of(root: Path) -> list[str]:
    """Processes that train in this directory."""
    found = subprocess.run(
        ["pgrep", "-f", f"megatron_r1.train.*run.root={root}"], capture_output=True, text=True
    )
    return found.stdout.split()


def test_two_ranks_end_with_a_table_and_say_where_the_rest_is(tmp_path):
    code, output = finish(quickstart(f"run.root={tmp_path}", "run.name=mine"))
    assert code == 0, output[-4000:]
    assert "| r1_zero |" in output
    for result in ("summary.json", "r1_zero/curves.png"):
        assert f"{tmp_path}/mine/{result}" in output
        assert (tmp_path / "mine" / result).is_file()


def test_a_mistake_ends_both_ranks_with_exit_code_2_and_one_message(tmp_path):
    code, output = finish(quickstart(f"run.root={tmp_path}", "rollout.temprature=2"))
    assert code == 2
    assert output.count("Error: ") == 1 and "Did you mean rollout.temperature?" in output


def test_a_mistake_found_on_the_main_rank_alone_ends_the_other_too(tmp_path):
    run = tmp_path / "quickstart"
    run.mkdir()
    (run / "config.yaml").write_text("seed: [")
    (run / "metrics.jsonl").touch()
    code, output = finish(quickstart(f"run.root={tmp_path}"))
    assert code == 2, output[-4000:]
    assert output.count("Error: ") == 1 and str(run) in output
    assert ranks_of(tmp_path) == []


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="needs setpriv (util-linux)")
def test_kill_9_of_the_script_ends_its_ranks(tmp_path):
    process = quickstart(f"run.root={tmp_path}", "stage.base.num_steps=100000")
    deadline = time.monotonic() + 120
    while not (tmp_path / "quickstart/base/metrics.jsonl").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    assert len(ranks_of(tmp_path)) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    deadline = time.monotonic() + 30
    while ranks_of(tmp_path):
        assert time.monotonic() < deadline, "the ranks go on without their script"
        time.sleep(0.1)
