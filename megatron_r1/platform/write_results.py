"""What Megatron's checkpoint writers report, without a process that keeps it.

`dist_checkpointing` starts a server for one queue: a Python that imports torch, and that goes on
for ever when its rank is killed. A file without a name does the same.
"""

from __future__ import annotations

import fcntl
import io
import os
import pickle
import queue
import tempfile
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class WriteResults:
    """A queue between a process and those that it forks: many put, the first one gets."""

    def __init__(self) -> None:
        self._file = _nameless_file()
        self._found: deque[Any] = deque()

    def put(self, item: Any) -> None:
        with self._locked():
            self._file.seek(0, os.SEEK_END)
            left = memoryview(pickle.dumps(item))
            while left:
                left = left[self._file.write(left) :]

    def get_nowait(self) -> Any:
        """The oldest item; raises queue.Empty when there is none."""
        with self._locked():
            self._file.seek(0)
            stream = io.BytesIO(self._file.readall())
            self._file.truncate(0)
        while stream.tell() < len(stream.getbuffer()):
            try:
                self._found.append(pickle.load(stream))
            except (EOFError, pickle.UnpicklingError) as error:
                # Megatron raises it on every rank.
                self._found.append(OSError(f"what a writer reported is cut short: {error}"))
                break
        if not self._found:
            raise queue.Empty
        return self._found.popleft()

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """A lock of this process; flock would be shared with forked ones."""
        fcntl.lockf(self._file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.lockf(self._file, fcntl.LOCK_UN)


def _nameless_file() -> io.FileIO:
    """In memory, where the system has such files: no disk that is full is in the way."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("write_results"), "r+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def fresh_results() -> None:
    """Have the writers of the next save report to a queue of its own.

    Megatron's is one for all saves: of two in the background each could take the other's report.
    """
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    filesystem_async._results_queue = WriteResults()
