"""Servers of `rollout.urls`, which others start, end and start anew."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from functools import partial

from megatron_r1.config.model import ModelConfig
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.rollout.server_api import obeys, side_by_side
from megatron_r1.rollout.server_check import check_server
from megatron_r1.telemetry.progress import Progress

_POLL_S = 0.2


def wait_for_attached(
    model: ModelConfig, config: SglangConfig, closing: threading.Event, show_progress: bool
) -> None:
    """Return when all take orders. One that is started anew is away for a while, and need not come
    back as what it was.

    Raises:
        EngineError: one does not come within `rollout.health_timeout_s`, serves another model now,
            or the run is `closing`.
    """
    limit_s, total = config.health_timeout_s, len(config.urls)
    deadline_s = time.monotonic() + limit_s

    def without_answer(urls: Sequence[str]) -> list[str]:
        left_s = max(deadline_s - time.monotonic(), _POLL_S)
        answers = side_by_side(urls, partial(obeys, timeout_s=left_s))
        return [url for url, answered in zip(urls, answers, strict=True) if not answered]

    away = waited_for = without_answer(config.urls)
    if not away:
        return
    with Progress(
        total, "servers", "waiting for rollout.urls", every_s=5.0, enabled=show_progress
    ) as progress:
        while away:
            progress.update(total - len(away), ", ".join(away))
            if time.monotonic() > deadline_s:
                raise EngineError(
                    f"{', '.join(away)} of rollout.urls did not answer within "
                    f"rollout.health_timeout_s = {limit_s}. Start what has ended, raise the limit, "
                    "or correct rollout.urls; then start this run again"
                )
            if closing.wait(_POLL_S):
                raise EngineError("the run ended while it waited for rollout.urls")
            away = without_answer(away)
        progress.update(total)
    for url in waited_for:
        check_server(url, model, config)
