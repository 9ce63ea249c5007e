"""A rank beyond its limit says where it stands, and ends; the others' reports make a summary."""

from __future__ import annotations

import subprocess
import sys
import time
import traceback
from pathlib import Path

from megatron_r1.config.cluster import WatchdogConfig
from megatron_r1.errors import EXIT_STALLED
from megatron_r1.telemetry.stacks import main_thread_stack, read_stack
from megatron_r1.telemetry.watchdog import Watchdog, summarise

ROOT = Path(__file__).parents[2]
HANGING = """
import re, sys, time
from pathlib import Path
from megatron_r1.config.cluster import WatchdogConfig
from megatron_r1.telemetry import watchdog

watchdog.GRACE_S = 0.1
dog = watchdog.Watchdog(WatchdogConfig(setup_s=60, step_s=3), rank=1, host="n1")
dog.start()
dog.know(["n0", "n1", "n1"], Path(sys.argv[1]))
dog.enter("step")
def hang():
    {hang}
hang()
"""


def run_until_stalled(hang: str, reports: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", HANGING.format(hang=hang), str(reports)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_a_rank_that_sleeps_names_itself_and_its_stack(tmp_path):
    done = run_until_stalled("time.sleep(3600)", tmp_path / "stalls")
    assert done.returncode == EXIT_STALLED
    report = (tmp_path / "stalls/rank_00001.txt").read_text()
    assert report.startswith(
        "rank 1 on n1: no sign of life for 3 s, the limit of a step; in no collective, at <string>"
    )
    assert "in hang" in report and report in done.stderr
    summary = (tmp_path / "stalls/summary.txt").read_text()
    assert summary in done.stderr
    assert "rank 0 on n0: no report" in summary and "rank 2 on n1: no report" in summary


def test_a_rank_whose_interpreter_is_held_is_ended_from_c(tmp_path):
    done = run_until_stalled("time.sleep(1.5); re.match('(a+)+$', 'a' * 64 + 'b')", tmp_path)
    assert done.returncode == 1
    assert "Timeout" in done.stderr and "in hang" in done.stderr


def test_signs_of_life_and_sections_without_a_limit_keep_it_quiet():
    dog = Watchdog(WatchdogConfig(step_s=1.5), rank=0, host="n0")
    dog.start()
    time.sleep(2)  # set-up, without a limit
    for _ in range(4):
        dog.enter("step")
        time.sleep(0.6)
    with dog.within("checkpoint"):
        time.sleep(2)
    dog.stop()


def frame(filename: str, name: str) -> traceback.FrameSummary:
    return traceback.FrameSummary(filename, 7, name, line="")


def test_a_stack_tells_the_collective_and_who_called_it():
    ours = frame("/repo/megatron_r1/parallel/exchange.py", "any_rank")
    torch = [
        frame("/venv/torch/distributed/c10d_logger.py", "wrapper"),
        frame("/venv/torch/distributed/distributed_c10d.py", "all_gather_object"),
        frame("/venv/torch/distributed/distributed_c10d.py", "all_gather"),
    ]
    waiting = read_stack(traceback.StackSummary.from_list([ours, *torch]))
    assert waiting.collective == "all_gather_object"
    assert waiting.place == "/repo/megatron_r1/parallel/exchange.py:7 in any_rank"
    # A hook of ours that torch.distributed calls back is at work, and does not wait.
    assert read_stack(traceback.StackSummary.from_list([*torch, ours])).collective is None
    assert main_thread_stack().collective is None


def test_the_summary_leaves_out_ranks_that_wait(tmp_path):
    for rank, where in ((0, "waits in barrier, called at a.py:1 in f"), (2, "in no collective")):
        (tmp_path / f"rank_{rank:05d}.txt").write_text(f"rank {rank} on n{rank}: late; {where}\n")
    lines = summarise(tmp_path, {0: "n0", 1: "n1", 2: "n2"}).splitlines()
    assert lines[0].endswith("1 of 3 ranks wait for others; these do not:")
    assert lines[1:3] == [
        "  rank 1 on n1: no report; its process is gone or stopped",
        "  rank 2 on n2: late; in no collective",
    ]
