"""Whose turn it is: senders on different ranks hand on the right to send."""

from __future__ import annotations

import time
from datetime import timedelta

import torch.distributed as dist

from megatron_r1.weights.transport import SendError

_DONE = "done"


class Turns:
    """Turns of one publish, numbered from 0; each belongs to a rank."""

    def __init__(self, store: dist.Store, publish: str) -> None:
        """`publish` is no other one's name. The store is asked from one thread alone: whoever
        waits in it holds it."""
        self._store = store
        self._publish = publish

    def wait(self, turn: int, *, deadline_s: float) -> None:
        """Return when a turn of another rank is over.

        Raises:
            SendError: it failed there, or was not over by `deadline_s`, of `time.monotonic`.
        """
        key = self._key(turn)
        left_s = max(deadline_s - time.monotonic(), 0.001)
        try:
            self._store.wait([key], timedelta(seconds=left_s))
        except RuntimeError as error:
            raise SendError(f"bucket {turn + 1}, another rank's, took too long") from error
        words = self._store.get(key).decode()
        self._store.delete_key(key)
        if words != _DONE:
            raise SendError(words)

    def end(self, turn: int, failure: str | None = None) -> None:
        """Let the rank go on that waits for the end of this turn."""
        self._store.set(self._key(turn), failure or _DONE)

    def _key(self, turn: int) -> str:
        return f"weight_turns/{self._publish}/{turn}"
