"""Judgements on disk: one JSON object a line, the request beside the reply."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import threading
from pathlib import Path
from typing import Any

from megatron_r1.errors import DataError


class JudgeCache:
    """Replies by request. A line that was cut short by a kill is dropped; any other is an error.

    One process writes a file; threads of it may share the object.

    Raises:
        DataError: the file is no cache, or another version's.
    """

    def __init__(self, path: str | None) -> None:
        self.lock = threading.Lock()
        self._path = None if path is None else Path(path)
        self._replies: dict[str, dict[str, Any]] = {}
        if self._path is not None and self._path.exists():
            self._load(self._path)

    def get(self, request: dict[str, Any]) -> dict[str, Any] | None:
        with self.lock:
            return self._replies.get(_key(request))

    def put(self, request: dict[str, Any], reply: dict[str, Any]) -> None:
        """Keep a reply; it is on disk when this returns."""
        line = json.dumps({"request": request, "reply": reply}, ensure_ascii=True) + "\n"
        with self.lock:
            self._replies[_key(request)] = reply
            if self._path is not None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                _append(self._path, line.encode())

    def _load(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        if lines and not lines[-1].endswith(b"\n"):
            # Cut off, so that the next reply starts a line of its own.
            with open(path, "r+b") as file:
                file.truncate(sum(map(len, lines[:-1])))
            lines.pop()
        for number, line in enumerate(lines, start=1):
            try:
                record = json.loads(line)
                self._replies[_key(record["request"])] = record["reply"]
            except (ValueError, KeyError, TypeError) as error:
                raise DataError(
                    f"{path}:{number} is no line of a judge's cache: {error}. Move the file away, "
                    "or set judge.cache_path to another one"
                ) from error


def _append(path: Path, line: bytes) -> None:
    """All of the line or, on a full disk, none of it."""
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        if file.write(line) < len(line):
            file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _key(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
