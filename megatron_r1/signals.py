"""Being asked to stop while there is still time for a checkpoint; and children, which should stay
until then and not longer.

Slurm warns before a time limit (``--signal=USR1@600``) and sends SIGTERM before it preempts or
cancels; it sends either to every process of a job, children included.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from types import FrameType

WARNING = signal.SIGUSR1

_PR_SET_PDEATHSIG = 1

_received: set[int] = set()
_mortal = False
"""Whether what is forked now ends with the process that forks it."""
_parent = 0


def listen() -> None:
    """Keep Slurm's warning for later. Call it first of all in the process.

    The signal is blocked and stays pending: threads and children that start from here on inherit
    the mask, so that it ends none of them.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {WARNING})


@contextmanager
def terminate_later() -> Iterator[None]:
    """Within the block SIGTERM is only noted. Slurm sends it more than once, and SIGKILL to what
    has not ended in time."""
    before = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def children_outlive_sigterm() -> Iterator[None]:
    """Processes that are started in the block inherit a mask: what a checkpoint or a reward needs
    is still there when Slurm has sent SIGTERM to every process of the job."""
    resource_tracker.ensure_running()  # its first start would take the mask away
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def children_end_with_us() -> Iterator[None]:
    """Processes that are forked in the block are killed when this thread ends.

    A child has the parent's files: one that waits for ever, for an answer of a rank that was
    killed, would keep the lock of the run and the port that the next start needs.
    """
    global _mortal
    before, _mortal = _mortal, True
    try:
        yield
    finally:
        _mortal = before


def signal_to_stop() -> int:
    """The number of a signal that asked this process to stop, SIGTERM before a warning; 0: none."""
    if _received:
        return max(_received)
    return WARNING if WARNING in signal.sigpending() else 0


def was_terminated() -> bool:
    """Whether a SIGTERM came within `terminate_later`."""
    return signal.SIGTERM in _received


def _note(number: int, frame: FrameType | None) -> None:
    _received.add(number)


def _before_fork() -> None:
    global _parent
    _parent = os.getpid()


def _after_fork() -> None:
    if not _mortal or sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != _parent:  # it ended before we asked
        os._exit(1)


os.register_at_fork(before=_before_fork, after_in_child=_after_fork)
