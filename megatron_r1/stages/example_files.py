"""Files that a stage learns from, read as `data.bad_lines` says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from megatron_r1.config.data import BadLines
from megatron_r1.stages.session import Session

T = TypeVar("T")


def read_examples(
    session: Session, read: Callable[..., list[T]], path: str | Path, **settings: Any
) -> list[T]:
    """What `read` finds in a file, after saying how many lines were set aside.

    Args:
        read: a reader of `data/`, which takes `bad_lines`.
        settings: others of its arguments.
    Raises:
        DataError: the file cannot be used, or has a bad line where none may be.
    """
    is_lenient = session.config.data.bad_lines is BadLines.set_aside
    bad_lines = [] if is_lenient else None
    found = read(path, bad_lines=bad_lines, **settings)
    if bad_lines:
        session.say(
            f"{len(bad_lines)} bad lines of {path} were set aside; the first: {bad_lines[0]}"
        )
    return found
