"""The run directory: whose it is, what it was started with, and who works in it now."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from megatron_r1.config.load import to_yaml, world_size_from_environment
from megatron_r1.config.run import RunConfig
from megatron_r1.errors import RunDirError
from megatron_r1.telemetry.files import replace_file

_LOCK = ".lock"
_MAY_CHANGE_GROUPS = (
    "run.",
    "parallel.",
    "cluster.",
    "telemetry.",
    "monitor.",
    "stage.evaluation.",
)
_MAY_CHANGE = (
    ".num_steps",
    ".checkpoint_every_steps",
    ".keep_checkpoints",
    "reward.num_workers",
    "rollout.max_batch",
)
"""Settings that a run may be resumed with in another value."""


class RunDir:
    """Holds the directory of a run for one job at a time. The main rank opens it."""

    def __init__(self, config: RunConfig) -> None:
        """Make or find the directory, take its lock, write what the run is.

        Raises:
            RunDirError: another process works in it, or it cannot be written.
        """
        self.path = config.run.dir
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = (self.path / _LOCK).open("a+")
        except OSError as error:
            raise RunDirError(f"the run directory {self.path} cannot be made: {error}") from error
        self._take_lock()
        if config.run.overwrite:
            self._clear()
        self._check_same_run(config)
        self._write(config)

    def close(self) -> None:
        """Give the lock back. The kernel does so too when the process dies."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.seek(0)
            owner = self._lock.read().strip() or "another process"
            self._lock.close()
            raise RunDirError(
                f"{self.path} is in use by {owner}. Wait for it, stop it, or choose another "
                "run.name"
            ) from None
        self._lock.seek(0)
        self._lock.truncate()
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}\n")
        self._lock.flush()

    def _check_same_run(self, config: RunConfig) -> None:
        """A run goes on under the configuration it began with; lengths and layout may change."""
        saved_file = self.path / "config.yaml"
        has_begun = any(self.path.glob("**/metrics.jsonl"))
        if not (has_begun and saved_file.is_file()):
            return  # a start that was refused claims nothing
        try:
            saved = flatten(OmegaConf.to_container(OmegaConf.load(saved_file)))
        except (YAMLError, OmegaConfBaseException) as error:
            raise RunDirError(
                f"{saved_file} cannot be read: {error}. Restore it, or run.overwrite=true"
            ) from error
        own = flatten(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))
        changed = [
            f"{key}: {saved.get(key)} -> {own.get(key)}"
            for key in sorted(saved.keys() | own.keys())
            if saved.get(key) != own.get(key)
            and not key.endswith(_MAY_CHANGE)
            and not key.startswith(_MAY_CHANGE_GROUPS)
        ]
        if changed:
            raise RunDirError(
                f"{self.path} belongs to a run with another configuration ({'; '.join(changed)}). "
                "Choose another run.name, or run.overwrite=true to start over"
            )

    def _clear(self) -> None:
        entries = {entry.name for entry in self.path.iterdir()} - {_LOCK}
        if entries and "manifest.json" not in entries:
            raise RunDirError(
                f"{self.path} was not made by this program (it has no manifest.json), and "
                "run.overwrite=true would delete what it holds. Choose another run.name"
            )
        for entry in self.path.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _write(self, config: RunConfig) -> None:
        with replace_file(self.path / "config.yaml") as draft:
            draft.write_text(to_yaml(config))
        with replace_file(self.path / "manifest.json") as draft:
            draft.write_text(json.dumps(manifest(config), indent=1) + "\n")


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` as ``{"a.b": 1}``."""
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat


def manifest(config: RunConfig) -> dict[str, Any]:
    """What one would need to know to repeat the run: versions, commit, command, seed, layout."""
    packages = ("torch", "megatron-core", "transformers", "reasoning-gym", "math-verify", "numpy")
    return {
        "command": sys.argv,
        "seed": config.run.seed,
        "world_size": world_size_from_environment(),
        "parallel": dataclasses.asdict(config.parallel),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "commit": _commit(),
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with ``+`` when files differ from it; None outside a checkout."""
    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return head and head + ("+" if git("status", "--porcelain") else "")
