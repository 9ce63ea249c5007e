"""What a run reads and writes, by its content: hashes of files, checkpoints and models."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from megatron_r1.checkpoint.hf_coverage import is_hf_directory
from megatron_r1.checkpoint.record import resolve_checkpoint
from megatron_r1.config.paths import flatten, paths_read
from megatron_r1.config.run import RunConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.telemetry.files import sha256_of, write_json
from megatron_r1.telemetry.lock import LOCK
from megatron_r1.telemetry.run_dir import is_run


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
        another directory; None where there is nothing, such as a run without a checkpoint."""
        if path.is_file():
            return self._of_file(path)
        root = artifact_root(path)
        if root is None:
            return None
        files = sorted(f for f in root.rglob("*") if f.is_file() and f.name != LOCK)
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
        found = sha256_of(path)
        self._known[key] = [*stamp, found]
        return found


def artifact_root(path: Path) -> Path | None:
    """The directory whose files a model is, or a plain directory itself; None without one, and for
    a run that has saved nothing: its lock and its logs are no model."""
    if not path.is_dir():
        return None
    if is_hf_directory(path):
        return path
    try:
        return resolve_checkpoint(path)
    except CheckpointError:
        return None if is_run(path) else path


def inputs_of(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Setting -> what a run reads there: files by SHA-256; parent runs and other models by the
    checkpoint, and what that says of itself. What is not there is left out: who reads it says so.
    """
    settings = flatten(OmegaConf.to_container(OmegaConf.structured(config)))
    found: dict[str, dict[str, Any]] = {}
    for setting, path in paths_read(settings).items():
        row: dict[str, Any] = {"path": path}
        if Path(path).is_file():
            row["sha256"] = sha256_of(Path(path))
        else:
            root = artifact_root(Path(path))
            if root is None:
                continue
            row["checkpoint"] = str(root)
            for name in ("state.json", "config.json"):
                if (root / name).is_file():
                    row[name] = sha256_of(root / name)
        found[setting] = row
    return found
