"""What has become of a job: asked of squeue, then of the controller, then of the accounting.

The accounting may be switched off, and is seconds late where it is on; the controller forgets a job
some minutes after its end.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable

COMPLETED = "COMPLETED"
_OVER = {
    "BOOT_FAIL",
    "CANCELLED",
    COMPLETED,
    "DEADLINE",
    "FAILED",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "TIMEOUT",
}
UNKNOWN = "UNKNOWN"
_IN_DOUBT = {UNKNOWN, "PREEMPTED"}


def job_state(job: str) -> str:
    """Slurm's word, such as RUNNING; UNKNOWN when nobody answers."""
    queued = _ask("squeue", "--noheader", "--jobs", job, "--format", "%T")
    if queued:
        return queued.split()[0]
    shown = _ask("scontrol", "show", "job", "--oneliner", job)
    for field in shown.split():
        if field.startswith("JobState="):
            return field.partition("=")[2]
    counted = _ask("sacct", "--noheader", "--allocations", "--jobs", job, "--format", "State%20")
    return counted.split()[0] if counted.split() else UNKNOWN


def is_over(state: str) -> bool:
    """PREEMPTED is not: Slurm starts such a job again, where its partition does not cancel it."""
    return state in _OVER


def wait(
    jobs: list[str],
    *,
    every_s: float,
    on_poll: Callable[[], None],
    patience_s: float = 600.0,
) -> list[str]:
    """Poll until every job is over. Returns their last states.

    A job that nobody knows for `patience_s` is UNKNOWN for good; one that stays PREEMPTED for so
    long was cancelled.
    """
    states = [UNKNOWN] * len(jobs)
    heard_s = [time.monotonic()] * len(jobs)
    while True:
        states = [
            state if is_over(state) else job_state(job)
            for state, job in zip(states, jobs, strict=True)
        ]
        on_poll()
        now_s = time.monotonic()
        heard_s = [
            known_s if state in _IN_DOUBT else now_s
            for state, known_s in zip(states, heard_s, strict=True)
        ]
        if all(
            is_over(state) or (state in _IN_DOUBT and now_s - known_s > patience_s)
            for state, known_s in zip(states, heard_s, strict=True)
        ):
            return states
        time.sleep(every_s)


def _ask(*command: str) -> str:
    """What a command prints; nothing when it fails or is not there."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
