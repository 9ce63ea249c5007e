"""The run directory: whose it is, what it was started with, and who works in it now."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, Self

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from megatron_r1.config.earlier import changed_settings
from megatron_r1.config.load import settings_of, to_yaml, world_size_from_environment
from megatron_r1.config.paths import flatten
from megatron_r1.config.pipeline import PipelineConfig
from megatron_r1.config.run import RunConfig
from megatron_r1.errors import RunDirError
from megatron_r1.telemetry.files import replace_file, write_json
from megatron_r1.telemetry.lock import LOCK, DirectoryLock

Inputs = Mapping[str, Mapping[str, Any]]
"""Setting -> its path, and what was there: `checkpoint/artifacts.py`."""
_REPLACED = ".replaced"
"""Where `run.overwrite` puts what there was, until the new run has made something."""
_REPLACED_FOR = ".replaced_for"
"""Names the Slurm job that `run.overwrite` was done for: its further starts go on."""
_BEGINS = ("**/metrics.jsonl", "**/data/samples/part_*.jsonl")
"""What a run writes that one under another configuration would mix its own with."""
_RESULTS = ("**/eval/**/*.json", "**/corpus.jsonl", "**/curation.json")
"""What else a stage makes; some make nothing else."""
_MAY_CHANGE_GROUPS = (
    "parallel.",
    "cluster.",
    "telemetry.",
    "monitor.",
    "evaluation.",
    "judge.",
    "stage.evaluation.",
)
_ASKING = ("base_url", "timeout_s", "cache_path", "max_parallel", "api_key_variable")
_ASKING += ("max_retries", "retry_s")
HOW_NOT_WHAT = (
    ".checkpoint_every_steps",
    ".keep_checkpoints",
    ".background_checkpoints",
    "run.overwrite",
    "reward.num_workers",
    "rollout.max_batch",
    ".problems_per_part",
    *(f"{who}.{name}" for who in ("judge", "teacher") for name in _ASKING),
    *(f"rollout.{name}" for name in ("urls", "router_url", "host", "port", "num_servers")),
    *(f"rollout.{name}" for name in ("tensor", "expert", "attention_data", "max_restarts")),
    *(f"rollout.{name}" for name in ("check_weights_every", "max_mismatch")),
    *(f"rollout.{name}_s" for name in ("start_timeout", "request_timeout", "give_up")),
    *(f"rollout.{name}_s" for name in ("health_every", "health_timeout", "publish_timeout")),
)
"""Settings (the ends of their names) that do not change what a run makes: where it runs, how often
it saves, and how patiently it asks."""
_MAY_CHANGE = (*HOW_NOT_WHAT, ".num_steps", ".num_epochs", ".heldout", "run.name", "run.root")
"""Settings that a run may be resumed with in another value."""


class RunDir:
    """Holds the directory of a run for one job at a time. The main rank opens it."""

    def __init__(self, config: RunConfig, inputs: Inputs | None = None) -> None:
        """Make or find the directory, take its lock, write what the run is.

        Args:
            inputs: what it reads, for the manifest; a run does not go on with other files.
        Raises:
            RunDirError: another process works in it, it cannot be written, or it is another run's.
        """
        self.path = config.run.dir
        self._inputs = inputs or {}
        self._lock = DirectoryLock(self.path)
        if config.run.overwrite and not self._is_started_again():
            self._set_aside()
        self._check_same_run(config)
        self._write(config)

    def close(self) -> None:
        """Give the lock back. The kernel does so too when the process dies.

        What `run.overwrite` set aside comes back when the new run has made nothing.
        """
        replaced = self.path / _REPLACED
        if replaced.is_dir():
            if self._holds(*_BEGINS, *_RESULTS):
                shutil.rmtree(replaced)
            else:
                # First: a start after a kill amid this is to make room anew.
                (self.path / _REPLACED_FOR).unlink(missing_ok=True)
                self._delete_entries()
                for entry in replaced.iterdir():
                    entry.rename(self.path / entry.name)
                replaced.rmdir()
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _check_same_run(self, config: RunConfig) -> None:
        """A run goes on under the configuration it began with; lengths and layout may change."""
        saved_file = self.path / "config.yaml"
        if isinstance(config.stage, PipelineConfig):
            return  # its steps are runs of their own, and find out what changed for them
        if not (self._holds(*_BEGINS) and saved_file.is_file()):
            return  # a start that was refused claims nothing
        try:
            saved = flatten(OmegaConf.to_container(OmegaConf.load(saved_file)))
        except (YAMLError, OmegaConfBaseException) as error:
            raise RunDirError(
                f"{saved_file} cannot be read: {error}. Restore it, or run.overwrite=true"
            ) from error
        changed = [
            f"{key}: {before} -> {now}"
            for key, (before, now) in changed_settings(saved, settings_of(config), config).items()
            if not _may_change(key)
        ]
        if changed:
            raise RunDirError(
                f"{self.path} belongs to a run with another configuration ({'; '.join(changed)}). "
                "Choose another run.name, or run.overwrite=true to start over"
            )
        self._check_same_files()

    def _check_same_files(self) -> None:
        """What a run has learned from a file is half of it; the other half is to come from it."""
        for setting, before in self._inputs_before().items():
            known, now = before.get("sha256"), self._inputs.get(setting, {}).get("sha256")
            if _may_change(setting) or None in (known, now):
                continue
            if known != now:
                raise RunDirError(
                    f"{setting} = {before['path']} is not the file that the run in {self.path} "
                    f"began with (SHA-256 {known[:12]} -> {now[:12]}). Restore it, choose another "
                    "run.name, or run.overwrite=true to start over"
                )

    def _inputs_before(self) -> Inputs:
        """What the last start read, where it made something; nothing where that is not known."""
        if not self._holds(*_BEGINS):
            return {}
        try:
            return json.loads((self.path / "manifest.json").read_text())["inputs"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _holds(self, *patterns: str) -> bool:
        """Whether a file was made that one of `patterns` names; what was set aside counts not."""
        found = (file for pattern in patterns for file in self.path.glob(pattern))
        return any(self.path / _REPLACED not in file.parents for file in found)

    def _set_aside(self) -> None:
        """Make room for a new run. What a start that failed left behind is no run, and goes."""
        entries = self._entries()
        if entries and not _is_manifest(self.path / "manifest.json"):
            raise RunDirError(
                f"{self.path} was not made by this program (it has no manifest.json of it), and "
                "run.overwrite=true would delete what it holds. Choose another run.name"
            )
        replaced = self.path / _REPLACED
        if replaced.is_dir() and not self._holds(*_BEGINS, *_RESULTS):
            self._delete_entries()
        else:
            shutil.rmtree(replaced, ignore_errors=True)
            replaced.mkdir()
            for entry in entries:
                entry.rename(replaced / entry.name)
        if "SLURM_JOB_ID" in os.environ:
            (self.path / _REPLACED_FOR).write_text(os.environ["SLURM_JOB_ID"])

    def _is_started_again(self) -> bool:
        """Whether Slurm started the job again, after a start of it has made room."""
        job, done_for = os.environ.get("SLURM_JOB_ID"), self.path / _REPLACED_FOR
        is_restart = int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0
        return is_restart and done_for.is_file() and done_for.read_text() == job

    def _entries(self) -> list[Path]:
        """What the run holds, without what this class keeps in its directory."""
        own = (LOCK, _REPLACED, _REPLACED_FOR)
        return [entry for entry in self.path.iterdir() if entry.name not in own]

    def _delete_entries(self) -> None:
        for entry in self._entries():
            if entry.is_dir():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _write(self, config: RunConfig) -> None:
        # A file that is missing now, which its reader will say, is still what the run began with.
        settings, before = settings_of(config), self._inputs_before()
        missing = {key: row for key, row in before.items() if settings.get(key) == row["path"]}
        with replace_file(self.path / "config.yaml") as draft:
            draft.write_text(to_yaml(config))
        write_json(self.path / "manifest.json", manifest(config, {**missing, **self._inputs}))


def _may_change(setting: str) -> bool:
    return setting.endswith(_MAY_CHANGE) or setting.startswith(_MAY_CHANGE_GROUPS)


def is_run(path: Path) -> bool:
    """Whether a directory is a run's, with or without a checkpoint."""
    return _is_manifest(path / "manifest.json")


def _is_manifest(file: Path) -> bool:
    """Whether a file says what `manifest` says."""
    try:
        found = json.loads(file.read_text())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and {"command", "world_size", "packages"} <= found.keys()


def manifest(config: RunConfig, inputs: Inputs | None = None) -> dict[str, Any]:
    """What one would need to know to repeat the run: versions, commit, command, seed, layout, and
    what it reads, data and parent runs."""
    packages = ("torch", "megatron-core", "transformers", "reasoning-gym", "math-verify", "numpy")
    return {
        "command": sys.argv,
        "seed": config.run.seed,
        "world_size": world_size_from_environment(),
        "parallel": OmegaConf.to_container(OmegaConf.structured(config.parallel), enum_to_str=True),
        "python": platform.python_version(),
        "host": socket.gethostname(),
        "commit": checkout_commit(),
        "inputs": inputs or {},
        "packages": {name: _version(name) for name in packages},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def checkout_commit() -> str | None:
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
