"""One process at a time in a directory."""

from __future__ import annotations

import fcntl
import os
import socket
from pathlib import Path
from typing import Self

from megatron_r1.errors import RunDirError

LOCK = ".lock"


class DirectoryLock:
    """Held until it is closed; the kernel gives it back when the process dies."""

    def __init__(self, directory: Path) -> None:
        """Make the directory where it is missing, and take it.

        Raises:
            RunDirError: another process works in it, or it cannot be made.
        """
        try:
            directory.mkdir(parents=True, exist_ok=True)
            self._file = (directory / LOCK).open("a+")
        except OSError as error:
            raise RunDirError(f"the run directory {directory} cannot be made: {error}") from error
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.seek(0)
            owner = self._file.read().strip() or "another process"
            self._file.close()
            raise RunDirError(
                f"{directory} is in use by {owner}. Wait for it, stop it, or choose another "
                "run.name"
            ) from None
        self._file.seek(0)
        self._file.truncate()
        self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()
