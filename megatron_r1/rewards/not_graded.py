"""How the reason of every part begins where a rollout could not be scored."""

from __future__ import annotations

TIMEOUT = "timeout"
WORKER_DIED = "worker died"


def not_graded(reason: str) -> str:
    """Which of the two a reason names; empty: neither."""
    kind = reason.partition(",")[0]
    return kind if kind in (TIMEOUT, WORKER_DIED) else ""
