"""What a run reads and writes, by its content: hashes of files, checkpoints and models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from megatron_r1.checkpoint.hf_coverage import is_hf_directory
from megatron_r1.checkpoint.record import resolve_checkpoint
from megatron_r1.errors import CheckpointError
from megatron_r1.telemetry.files import write_json


class Hashes:
    """SHA-256 of what lies on disk; a file is read again when its size or time has changed."""

    def __init__(self, cache: Path) -> None:
        """`cache`: where they are kept from one start to the next."""
        self._cache = cache
        self._known: dict[str, list] = {}
        try:
            found = json.loads(cache.read_text())
            self._known = found if isinstance(found, dict) else {}
        except (OSError, ValueError):
            pass  # none yet, or damaged: all is read again

    def of(self, path: Path) -> str | None:
        """Of a file, of the newest checkpoint of a run, of a Hugging Face model, or of all files of
        another directory; None where there is nothing."""
        if path.is_file():
            return self._of_file(path)
        root = artifact_root(path)
        if root is None:
            return None
        files = sorted(file for file in root.rglob("*") if file.is_file())
        digest = hashlib.sha256()
        for file in files:
            digest.update(f"{file.relative_to(root)} {self._of_file(file)}\n".encode())
        return digest.hexdigest() if files else None

    def save(self) -> None:
        write_json(self._cache, self._known)

    def _of_file(self, path: Path) -> str:
        stat, key = path.stat(), str(path.resolve())
        stamp = [stat.st_size, stat.st_mtime_ns]
        known = self._known.get(key)
        if known and known[:2] == stamp:
            return known[2]
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        self._known[key] = [*stamp, found]
        return found


def artifact_root(path: Path) -> Path | None:
    """The directory whose files a model is, or a plain directory itself; None without one."""
    if not path.is_dir():
        return None
    if is_hf_directory(path):
        return path
    try:
        return resolve_checkpoint(path)
    except CheckpointError:
        return path
