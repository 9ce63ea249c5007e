"""Where a Python thread is, and whether it waits for other ranks there."""

from __future__ import annotations

import sys
import threading
import traceback
from dataclasses import dataclass

_COLLECTIVES = (
    "torch/distributed/distributed_c10d.py",
    "torch/distributed/c10d_logger.py",
    "megatron/core/pipeline_parallel/p2p_communication.py",
)
"""Files whose functions wait for other ranks."""


@dataclass(frozen=True)
class Stack:
    """One thread's stack."""

    text: str
    """Outermost frame first, as tracebacks are printed."""
    collective: str | None
    """Name of the collective that it waits in; None when it is elsewhere."""
    place: str
    """``file:line in function``: who called the collective, or the innermost frame."""

    def describe(self) -> str:
        if self.collective is None:
            return f"in no collective, at {self.place}"
        return f"waits in {self.collective}, called at {self.place}"


def main_thread_stack() -> Stack:
    """The main thread's, from whatever thread this is called in."""
    frame = sys._current_frames()[threading.main_thread().ident]
    frames = traceback.extract_stack(frame)
    return read_stack(frames)


def read_stack(frames: traceback.StackSummary) -> Stack:
    """Name the collective that the innermost frames belong to, if they do."""
    outside = len(frames)
    while outside > 1 and frames[outside - 1].filename.endswith(_COLLECTIVES):
        outside -= 1
    # The outermost name that is no decorator's: what was called, not how it is done.
    inner = [frame.name for frame in frames[outside:] if frame.name != "wrapper"]
    caller = frames[outside - 1]
    return Stack(
        text="".join(frames.format()),
        collective=inner[0] if inner else None,
        place=f"{caller.filename}:{caller.lineno} in {caller.name}",
    )
