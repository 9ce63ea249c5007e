"""A directory that gets its name when it is whole, and is gone on with after an interruption."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from megatron_r1.checkpoint.record import publish
from megatron_r1.errors import CheckpointError, UserError


@contextmanager
def draft_directory(final: Path, plan: dict[str, Any]) -> Iterator[Path]:
    """Yield a directory beside `final`, and rename it when the block succeeds.

    It is hidden, `.partial_NAME`, and has its plan beside it. An interrupted one that was begun
    with the same plan is yielded as it was left; one of another plan is emptied. When the block
    finds that the user's data are at fault, nothing is left.

    Args:
        plan: what is made of what; JSON.
    Raises:
        CheckpointError: `final` has content, also if it got that meanwhile, is a mount point or
            cannot be made, or another process is writing it.
    """
    final = Path(os.path.realpath(final))  # a link or "." cannot be renamed to
    partial = final.parent / f".partial_{final.name}"
    plan_text = json.dumps(plan, indent=1)
    journal_path = partial.with_name(f"{partial.name}.json")
    with _open_journal(journal_path) as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"another process is writing {partial}") from error
        try:
            _check_free(final)
        except CheckpointError:
            journal_path.unlink()
            raise
        journal.seek(0)
        if not partial.is_dir() or journal.read() != plan_text:
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir()
            journal.truncate(0)
            journal.write(plan_text)
            journal.flush()
        try:
            yield partial
        except UserError:
            shutil.rmtree(partial)
            journal_path.unlink()
            raise
        except OSError as error:
            if error.filename is None:  # a write that failed does not say where
                error.filename = str(partial)
            raise
        _check_free(final)
        publish(partial, final)
        journal_path.unlink()


def _open_journal(path: Path) -> IO[str]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return path.open("a+")
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise CheckpointError(f"{path.parent} cannot be written to: {error.strerror}") from error


def _check_free(final: Path) -> None:
    """Leave room for a rename: an empty directory goes, one with content is refused."""
    if os.path.ismount(final):
        raise CheckpointError(f"{final} is a mount point. Name a directory within it")
    if not final.exists():
        return
    try:
        final.rmdir()
    except OSError as error:
        raise CheckpointError(
            f"{final} exists already. Delete it, or name another destination"
        ) from error


def fingerprint(directory: Path, pattern: str) -> dict[str, list[int]]:
    """Size and time of change of each file, to see that a source is still the same."""
    stats = {}
    for file in sorted(directory.glob(pattern)):
        try:
            stat = file.stat()
        except FileNotFoundError as error:
            raise CheckpointError(f"{file} is a link to nothing") from error
        stats[str(file.relative_to(directory))] = [stat.st_size, stat.st_mtime_ns]
    return stats
