"""Many requests at once, from a thread with an event loop of its own: sent, sent again, finished.

A request is sent again, to the next server, until it is answered: a server that died is started
again meanwhile (`servers.py`), and the same seed draws the same response anywhere.
"""

from __future__ import annotations

import asyncio
import math
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.rollout.responses import ResponseRequest, UnusableAnswerError
from megatron_r1.types import Rollout
from megatron_r1.weights.labels import ForeignWeightsError

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 10.0
_MAX_UNUSABLE = 5
_FAILING_ANSWERS = 3
_BUSY_STATUS = (408, 429)
_REFUSED_STATUS = range(400, 500)
_BROKEN_STATUS = range(500, 600)

Outcome = tuple[ResponseRequest, Rollout] | BaseException


@dataclass
class PoolCounts:
    """What had to be done again."""

    lost_connections: int = 0
    timeouts: int = 0
    unusable_answers: int = 0


@dataclass
class _Server:
    """What one has answered last."""

    num_unusable: int = 0
    """In a row, that nobody could use."""
    since: float = 0.0
    """When the first of them came, in seconds since the epoch, which other machines know too."""

    def hold_against(self) -> None:
        if not self.num_unusable:
            self.since = time.time()
        self.num_unusable += 1


class RequestPool:
    """Answers to requests, as they come."""

    def __init__(
        self,
        requests: Sequence[ResponseRequest],
        urls: Sequence[str],
        config: SglangConfig,
        *,
        make_body: Callable[[ResponseRequest, str], dict[str, Any]],
        read_answer: Callable[[Any, ResponseRequest], Rollout],
        first_server: int = 0,
        patience: float = 1.0,
    ) -> None:
        """`make_body` takes a request and its id; the servers are taken in turn, from
        `first_server`. An answer may take `patience` times `request_timeout_s`, and a response
        is given up after as many times `give_up_s`."""
        self._requests = requests
        self._urls = urls
        self._config = config
        self._make_body = make_body
        self._read_answer = read_answer
        self._first_server = first_server
        self._timeout_s = patience * config.request_timeout_s
        self._give_up_s = patience * config.give_up_s
        self._scale = f", for longer responses x {patience:g}" if patience != 1 else ""
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        """One for each request, as they come; an exception is the last."""
        self.counts = PoolCounts()
        self._servers = {url: _Server() for url in urls}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._looked_after_s: float | None = None

    def start(self) -> None:
        """Send everything. Nothing is given up before `start_clock`."""
        self._loop = asyncio.new_event_loop()
        self._task = self._loop.create_task(self._run())
        self._thread = threading.Thread(
            target=self._run_to_end, args=(self._loop, self._task), name="rollout-requests"
        )
        self._thread.start()

    def start_clock(self) -> None:
        """Servers are looked after from now on: the time after which a response is given up begins
        anew, of those that have been asked for."""
        self._looked_after_s = time.monotonic()

    def is_working(self) -> bool:
        """Whether answers are still to come."""
        return self._thread.is_alive()

    def take_failing(self) -> dict[str, float]:
        """URLs of servers whose last answers, three at least, nobody could use, and when the first
        of these came (seconds since the epoch). They are counted anew from here."""
        failing = {}
        for url, server in self._servers.items():
            if server.num_unusable >= _FAILING_ANSWERS:
                failing[url] = server.since
                server.num_unusable = 0
        return failing

    def stop(self) -> None:
        """Give up what is under way."""
        if self._loop is None:
            return
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._task.cancel)
        self._thread.join()
        self._loop.close()
        self._loop = None

    @contextmanager
    def running(self) -> Iterator[queue.Queue[Outcome]]:
        """`outcomes`, until the end of the block; started already or not."""
        if self._looked_after_s is None:
            self.start_clock()
        if self._loop is None:
            self.start()
        try:
            yield self.outcomes
        finally:
            self.stop()

    def _run_to_end(self, loop: asyncio.AbstractEventLoop, task: asyncio.Task) -> None:
        """Nothing that fails is lost with the thread: others wait for outcomes."""
        asyncio.set_event_loop(loop)
        try:
            loop.run_until_complete(task)
        except asyncio.CancelledError:
            pass
        except BaseExceptionGroup as group:
            self.outcomes.put(group.exceptions[0])
        except BaseException as error:
            self.outcomes.put(error)

    async def _run(self) -> None:
        import aiohttp

        room = asyncio.Semaphore(self._config.max_batch)
        connector = aiohttp.TCPConnector(limit=0)
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            asyncio.TaskGroup() as tasks,
        ):
            for index, request in enumerate(self._requests):
                await room.acquire()
                task = tasks.create_task(self._ask(session, index, request))
                task.add_done_callback(lambda _: room.release())

    async def _ask(self, session: Any, index: int, request: ResponseRequest) -> None:
        """Ask for one response until there is one."""
        asked_s, pause_s, unusable = time.monotonic(), _FIRST_PAUSE_S, 0
        attempt = self._first_server + index
        while True:
            url = self._urls[attempt % len(self._urls)]
            # To aiohttp 0 is no limit.
            limit_s = max(min(self._timeout_s, self._left_s(asked_s)), 0.1)
            try:
                rollout = await self._attempt(session, url, request, limit_s)
            except _FailedAttemptError as error:
                failure = error
            else:
                self.outcomes.put((request, rollout))
                return
            unusable += failure.is_unusable and self._looked_after_s is not None
            if unusable == _MAX_UNUSABLE or self._left_s(asked_s) < pause_s:
                raise EngineError(
                    f"no usable response to prompt {request.prompt.id} in "
                    f"{time.monotonic() - asked_s:.0f} s (rollout.give_up_s = "
                    f"{self._config.give_up_s}{self._scale}) and {unusable} of {_MAX_UNUSABLE} "
                    f"answers; the last, from {url}: {failure}"
                )
            attempt += 1
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _attempt(
        self, session: Any, url: str, request: ResponseRequest, limit_s: float
    ) -> Rollout:
        """The response, from one server. What is wrong with it is counted.

        Raises:
            _FailedAttemptError: none that can be used; another attempt may do better.
            EngineError: from other weights.
        """
        import aiohttp

        server = self._servers[url]
        try:
            answer = await self._send(session, url, request, limit_s)
            rollout = self._read_answer(answer, request)
        except TimeoutError:
            self.counts.timeouts += 1
            raise _FailedAttemptError(
                f"no answer within {limit_s:.0f} s (rollout.request_timeout_s = "
                f"{self._config.request_timeout_s}{self._scale})"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            self.counts.lost_connections += 1
            if getattr(error, "status", None) in _BROKEN_STATUS:
                server.hold_against()
            raise _FailedAttemptError(f"{type(error).__name__}: {error}") from error
        except UnusableAnswerError as error:
            self.counts.unusable_answers += 1
            if not isinstance(error, _RefusedRequestError):
                server.hold_against()
            raise _FailedAttemptError(str(error), is_unusable=True) from error
        except ForeignWeightsError as error:
            raise EngineError(
                f"{url} answered with weights {error}, which this run never published. If "
                "another program uses this server, give each its own; if it was started anew "
                "outside of this run, start the run again and it publishes first"
            ) from error
        server.num_unusable = 0
        return rollout

    def _left_s(self, asked_s: float) -> float:
        """Until a response is given up."""
        if self._looked_after_s is None:
            return math.inf
        return max(asked_s, self._looked_after_s) + self._give_up_s - time.monotonic()

    async def _send(self, session: Any, url: str, request: ResponseRequest, limit_s: float) -> Any:
        """One attempt, under an id of its own: a server may still be at work on the one before."""
        import aiohttp

        limit = aiohttp.ClientTimeout(total=limit_s)
        body = self._make_body(
            request, f"{request.prompt.draw}-{request.sample}-{uuid.uuid4().hex}"
        )
        async with session.post(f"{url}/generate", json=body, timeout=limit) as response:
            if response.status in _REFUSED_STATUS and response.status not in _BUSY_STATUS:
                raise _RefusedRequestError(f"{response.status}: {(await response.text())[:1000]}")
            response.raise_for_status()
            try:
                return await response.json(content_type=None)  # whatever Content-Type says
            except ValueError as error:
                raise UnusableAnswerError(f"no JSON: {error}") from error


class _RefusedRequestError(UnusableAnswerError):
    """The fault of the request."""


class _FailedAttemptError(Exception):
    """No response; says why."""

    def __init__(self, reason: str, *, is_unusable: bool = False) -> None:
        """`is_unusable`: there was an answer."""
        super().__init__(reason)
        self.is_unusable = is_unusable
