"""Orders to several engines at once, with a time limit and with the names of those that fail."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from megatron_r1.rollout.server_api import NoAnswerError, RefusedError, ServerError, call
from megatron_r1.weights.transport import SendError


@dataclass(frozen=True)
class Engine:
    """A rollout server that runs."""

    url: str
    num_ranks: int
    start: str
    """Differs from one start of a server to the next at the same address."""


Answers = Mapping[Future[Any], Engine]


def find_engine(url: str, *, timeout_s: float) -> Engine:
    """Ask a server what it is.

    Raises:
        SendError: it does not say.
    """
    try:
        info = call(url, "/server_info", timeout_s=timeout_s)
        num_ranks = int(info["tp_size"])
    except ServerError as error:
        raise SendError(str(error), [url]) from error
    except (KeyError, TypeError, ValueError) as error:
        raise SendError(f"{url}/server_info names no tp_size: {str(info)[:300]}", [url]) from error
    return Engine(url, num_ranks=num_ranks, start=str(info.get("startup_time")))


class EngineRequests:
    """Threads that wait for engines' answers."""

    def __init__(self, engines: Sequence[Engine], name: str) -> None:
        # Twice: an engine that still owes an answer is told to leave.
        self._pool = ThreadPoolExecutor(2 * len(engines), thread_name_prefix=name)

    def ask(self, route: str, bodies: Mapping[Engine, Any], deadline_s: float) -> Answers:
        """All engines at once; `deadline_s` is of `time.monotonic`."""
        left_s = max(deadline_s - time.monotonic(), 0.1)
        return {
            self._pool.submit(call, engine.url, route, body, timeout_s=left_s): engine
            for engine, body in bodies.items()
        }

    def close(self) -> None:
        self._pool.shutdown(wait=False)


def collect(answers: Answers, what: str, deadline_s: float) -> None:
    """Wait until all engines have done it, or one has not.

    Raises:
        SendError: with the URLs of those that have not.
    """
    left_s = max(deadline_s - time.monotonic(), 0)
    done, _ = wait(answers, timeout=left_s, return_when=FIRST_EXCEPTION)
    for answer in done:
        error = answer.exception()
        if isinstance(error, NoAnswerError | RefusedError):
            raise SendError(f"{what}: {error}", [answers[answer].url]) from error
        if error is not None:
            raise error
    late = sorted(engine.url for answer, engine in answers.items() if answer not in done)
    if late:
        raise SendError(f"{what}: no answer in time from {', '.join(late)}", late)
