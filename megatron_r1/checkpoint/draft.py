"""A directory that gets its name when it is whole, and is gone on with after an interruption."""

from __future__ import annotations

import fcntl
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

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
        CheckpointError: `final` has content, or another process is writing it.
    """
    if final.exists() and (not final.is_dir() or any(final.iterdir())):
        raise CheckpointError(f"{final} exists already. Delete it, or name another destination")
    partial = final.parent / f".partial_{final.name}"
    plan_text = json.dumps(plan, indent=1)
    partial.mkdir(parents=True, exist_ok=True)
    journal_path = partial.with_name(f"{partial.name}.json")
    with journal_path.open("a+") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise CheckpointError(f"another process is writing {partial}") from error
        journal.seek(0)
        if journal.read() != plan_text:
            shutil.rmtree(partial)
            partial.mkdir()
            journal.truncate(0)
            journal.write(plan_text)
            journal.flush()
        try:
            yield partial
            publish(partial, final)
        except UserError:
            shutil.rmtree(partial)
            journal_path.unlink()
            raise
        journal_path.unlink()


def fingerprint(directory: Path, pattern: str) -> dict[str, list[int]]:
    """Size and time of change of each file, to see that a source is still the same."""
    stats = {str(f.relative_to(directory)): f.stat() for f in sorted(directory.glob(pattern))}
    return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
