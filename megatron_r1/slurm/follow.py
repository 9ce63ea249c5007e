"""Show what jobs write to their logs, while they write it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TextIO


class LogFollower:
    """Copies what is new in files that match patterns, each time it is asked to."""

    def __init__(self, directories: Sequence[Path], pattern: str, stream: TextIO) -> None:
        self._directories, self._pattern, self._stream = directories, pattern, stream
        self._shown_bytes: dict[Path, int] = {}

    def copy_new(self) -> None:
        for directory in self._directories:
            for path in sorted(directory.glob(self._pattern)):
                with path.open("rb") as file:
                    file.seek(self._shown_bytes.setdefault(path, 0))
                    new = file.read()
                self._shown_bytes[path] += len(new)
                self._stream.write(new.decode(errors="replace"))
        self._stream.flush()
