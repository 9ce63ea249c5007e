"""Ends a rank that has shown no sign of life for too long, after it has said where it stands.

A collective that waits for a lost or sleeping rank would wait for hours. Each rank watches itself
from a thread that wakes once a second: loops enter their sections right behind a collective, so
that all ranks reach a limit within moments of each other. Nothing is sent while all goes well.

    <run>/stalls/<start>/rank_00001.txt      where rank 1 stood; its host, its limit, its stack
    <run>/stalls/<start>/summary.txt         one line a rank, those outside a collective marked
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from megatron_r1.config.cluster import WatchdogConfig
from megatron_r1.errors import EXIT_STALLED
from megatron_r1.telemetry.stacks import main_thread_stack

GRACE_S = 5.0
"""Between this rank's report and its end, for those of the others to come."""
_POLL_S = 1.0
SECTIONS = ("setup", "step", "checkpoint")


class Watchdog:
    """Watches the main thread of one rank, from `start` to `stop`."""

    def __init__(self, limits: WatchdogConfig, *, rank: int, host: str) -> None:
        self._limits_s = {name: getattr(limits, f"{name}_s") for name in SECTIONS}
        self._rank = rank
        self._hosts = {rank: host}
        self._reports: Path | None = None
        self._section = ("setup", time.monotonic())
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Does nothing when no section has a limit."""
        if any(self._limits_s.values()):
            self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()
            faulthandler.cancel_dump_traceback_later()

    def know(self, hosts: Sequence[str], reports: Path) -> None:
        """Hosts of all ranks, and where on their common disk reports go."""
        self._hosts, self._reports = dict(enumerate(hosts)), reports

    def enter(self, section: str) -> None:
        """A sign of life; from now on `section` has its time."""
        self._section = (section, time.monotonic())

    @contextmanager
    def within(self, section: str) -> Iterator[None]:
        """Enter `section`, and behind the block enter the one before it anew."""
        outer, _ = self._section
        self.enter(section)
        yield
        self.enter(outer)

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            section, entered_s = self._section
            limit_s = self._limits_s[section]
            if limit_s == 0:
                faulthandler.cancel_dump_traceback_later()
                continue
            left_s = limit_s - (time.monotonic() - entered_s)
            if left_s <= 0:
                self._end(section, limit_s)
            # A computation in C may hold the interpreter, and then this thread does not run either:
            # from C, faulthandler prints the stacks and ends the process, with exit code 1.
            faulthandler.dump_traceback_later(left_s + 2 * (_POLL_S + GRACE_S), exit=True)

    def _end(self, section: str, limit_s: float) -> None:
        stack = main_thread_stack()
        head = (
            f"rank {self._rank} on {self._hosts[self._rank]}: no sign of life for {limit_s:g} s, "
            f"the limit of a {section}; {stack.describe()}"
        )
        _say(f"watchdog: {head}\n{stack.text}")
        if self._reports is not None:
            self._reports.mkdir(parents=True, exist_ok=True)
            _report_of(self._reports, self._rank).write_text(f"{head}\n{stack.text}")
            time.sleep(GRACE_S)
            if self._is_first_to_report():
                summary = summarise(self._reports, self._hosts)
                (self._reports / "summary.txt").write_text(summary)
                _say(summary)
        # Reward workers would go on, and srun waits for whoever holds the output open.
        for child in psutil.Process().children(recursive=True):
            child.kill()
        os._exit(EXIT_STALLED)

    def _is_first_to_report(self) -> bool:
        first = min(self._reports.glob("rank_*.txt"))
        return first == _report_of(self._reports, self._rank)


def summarise(reports: Path, hosts: dict[int, str]) -> str:
    """One line a rank that did not wait for others, which are where to look; and how many did."""
    lines, num_waiting = [], 0
    for rank, host in hosts.items():
        path = _report_of(reports, rank)
        if not path.exists():
            lines.append(f"  rank {rank} on {host}: no report; its process is gone or stopped")
            continue
        head = path.read_text().partition("\n")[0]
        if "; waits in " in head:
            num_waiting += 1
        else:
            lines.append(f"  {head}")
    return "\n".join(
        [
            f"watchdog: the job has stalled. {num_waiting} of {len(hosts)} ranks wait for others; "
            "these do not:",
            *(lines or ["  none: a message was lost, or ranks are in different collectives"]),
            f"All stacks are in {reports}\n",
        ]
    )


def _report_of(reports: Path, rank: int) -> Path:
    return reports / f"rank_{rank:05d}.txt"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
