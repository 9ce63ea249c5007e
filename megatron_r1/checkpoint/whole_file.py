"""A file that gets its name when it is whole and on the disk."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import IO

_PAUSE_S = 0.2
"""Between two rounds of writing out; short against the seconds that a gigabyte takes."""


@contextmanager
def whole_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to; it gets its name when the block succeeds and all is on the disk.

    The disk works while the block does, so that there is little left to wait for at the end.
    """
    draft = path.with_name(f".{path.name}.partial")
    with draft.open("wb") as handle:
        with _written_out(handle.fileno()):
            yield handle
            handle.flush()
        os.fsync(handle.fileno())
    draft.rename(path)


@contextmanager
def _written_out(descriptor: int) -> Iterator[None]:
    """Send what a file has to the disk again and again, in a thread."""
    done = Event()

    def write_out() -> None:
        while not done.wait(_PAUSE_S):
            os.fdatasync(descriptor)

    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(write_out)
        try:
            yield
        finally:
            done.set()
        running.result()  # a full disk may show itself there, and only there
