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
        self._file = tempfile.TemporaryFile(buffering=0)
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
            self._found.append(pickle.load(stream))
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


def without_server() -> None:
    """Have Megatron's writers of this process report to `WriteResults`. Again changes nothing."""
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    if not isinstance(filesystem_async._results_queue, WriteResults):
        filesystem_async._results_queue = WriteResults()
