"""What a rollout server is asked outside of sampling: its health, its model, its weights."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

T = TypeVar("T")

_LOOK_S = 0.2

_OPENER = build_opener(ProxyHandler({}))  # servers are in the cluster, never behind a proxy


class ServerError(Exception):
    """Servers did not do what they were asked."""

    def __init__(self, message: str, urls: Sequence[str] = ()) -> None:
        """`urls`: of the servers that did not, as far as that is known."""
        super().__init__(message)
        self.urls = tuple(urls)


class NoAnswerError(ServerError):
    """Nothing came back in time: no server, a dead one, or one that hangs."""


class RefusedError(ServerError):
    """The server answered, and will not do it, or said something else."""


def call(
    url: str, route: str, body: Mapping[str, Any] | None = None, *, timeout_s: float
) -> dict[str, Any]:
    """GET a route, or POST `body` to it. Returns the answer, empty where it is no JSON object.

    Raises:
        NoAnswerError: within `timeout_s`, or the connection broke.
        RefusedError: an HTTP status other than 200; holds the server's own words.
    """
    data = None if body is None else json.dumps(body).encode()
    request = Request(url + route, data=data, headers={"Content-Type": "application/json"})
    try:
        with _OPENER.open(request, timeout=timeout_s) as response:
            answer = response.read()
    except HTTPError as error:
        words = error.read().decode(errors="replace")[:2000]
        raise RefusedError(f"{url}{route} answered {error.code}: {words}", [url]) from error
    except (OSError, HTTPException) as error:
        raise NoAnswerError(f"{url}{route}: {error}", [url]) from error
    try:
        value = json.loads(answer)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def call_long(
    url: str, route: str, body: Mapping[str, Any], *, timeout_s: float, silence_s: float
) -> dict[str, Any]:
    """`call` of what takes a while. A server that listens no longer is not waited for.

    Args:
        silence_s: between two questions whether it listens, and the limit for the answer to each.
    Raises:
        NoAnswerError: it listens no longer, or takes longer than `timeout_s`.
        RefusedError: it will not.
    """
    answer = _in_background(lambda: call(url, route, body, timeout_s=timeout_s))
    while not wait([answer], timeout=silence_s).done:
        if not listens(url, timeout_s=silence_s) and not answer.done():
            raise NoAnswerError(f"{url}{route}: it said nothing for {silence_s} s", [url])
    return answer.result()


def _in_background(action: Callable[[], T]) -> Future[T]:
    """In a thread that is left behind where the server never answers."""
    result: Future[T] = Future()

    def act() -> None:
        try:
            result.set_result(action())
        except BaseException as error:
            result.set_exception(error)

    Thread(target=act, daemon=True).start()
    return result


def side_by_side(urls: Iterable[str], action: Callable[[str], T]) -> list[T]:
    """What `action` gives for each server, all at once.

    Raises:
        ServerError: when all have ended, the first failure, with the URLs of all that failed.
    """
    urls = list(urls)
    if not urls:
        return []
    with ThreadPoolExecutor(len(urls)) as pool:
        answers = [pool.submit(action, url) for url in urls]
    failures = [error for answer in answers if (error := answer.exception()) is not None]
    for error in failures:
        if not isinstance(error, ServerError):
            raise error
    if failures:
        failures[0].urls = tuple(url for error in failures for url in error.urls)
        raise failures[0]
    return [answer.result() for answer in answers]


def works(url: str, *, timeout_s: float) -> bool:
    """Whether the whole server samples: a token for this question, or meanwhile for others, who may
    have all of its seats.

    SGLang's `/health` would say so too, but it draws greedily: in a batch with one of these, seeds
    of requests draw other tokens (its sampler sorts a batch as soon as a request in it has a top-k,
    and draws places in place of tokens).
    """
    deadline_s = time.monotonic() + timeout_s

    def left_s() -> float:
        return max(deadline_s - time.monotonic(), _LOOK_S)

    token = _in_background(lambda: samples_one(url, timeout_s=timeout_s))
    before = _last_batches(url, timeout_s=left_s())
    while time.monotonic() < deadline_s:
        if wait([token], timeout=_LOOK_S).done and token.result():
            return True
        now = _last_batches(url, timeout_s=left_s())
        if now - before:
            return True
        if token.done() and not token.result():
            if not now:
                return False  # no token for us, and none for others
            time.sleep(_LOOK_S)  # `wait` returns at once from here on
        before |= now
    return token.done() and token.result()


def _last_batches(url: str, *, timeout_s: float) -> set[float]:
    """When each of a server's schedulers that have requests last said so, after a batch, by its
    clock; empty where none has, or nothing is said. Of one that hangs it is the last that it said.
    """
    try:
        loads = call(url, "/v1/loads?include=core", timeout_s=timeout_s)["loads"]
        return {float(load["timestamp"]) for load in loads if load.get("num_running_reqs")}
    except (ServerError, AttributeError, KeyError, TypeError, ValueError):
        return set()


def samples_one(url: str, *, timeout_s: float) -> bool:
    """Whether it samples one token for this question. On a busy server that waits its turn."""
    one_token = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1}}
    return _succeeds(url, "/generate", one_token, timeout_s)


def obeys(url: str, *, timeout_s: float) -> bool:
    """Whether the whole server takes orders, paused or not. No token is sampled."""
    return _succeeds(url, "/server_info", None, timeout_s)


def listens(url: str, *, timeout_s: float) -> bool:
    """Whether the part of a server that listens works, whatever its model's processes are at: those
    that load weights take no orders."""
    return _succeeds(url, "/model_info", None, timeout_s)


def _succeeds(url: str, route: str, body: Mapping[str, Any] | None, timeout_s: float) -> bool:
    try:
        call(url, route, body, timeout_s=timeout_s)
    except (NoAnswerError, RefusedError):
        return False
    return True


def weight_label(url: str, *, timeout_s: float) -> str:
    """Name of the weights that a server says it holds."""
    return str(call(url, "/model_info", timeout_s=timeout_s).get("weight_version"))


def load_files(
    url: str, directory: Path, label: str, *, timeout_s: float, silence_s: float
) -> None:
    """Have a server read its weights from a directory; see `call_long`."""
    body = {"model_path": str(directory), "weight_version": label}
    call_long(url, "/update_weights_from_disk", body, timeout_s=timeout_s, silence_s=silence_s)


def checksums(url: str, *, timeout_s: float, silence_s: float | None = None) -> dict[str, str]:
    """Checksum of every tensor in a server, as ``rank/name``, in its own layout."""
    route, body = "/weights_checker", {"action": "checksum"}
    silence_s = timeout_s if silence_s is None else silence_s
    answer = call_long(url, route, body, timeout_s=timeout_s, silence_s=silence_s)
    try:
        return {
            f"{rank}/{name}": checksum
            for rank, held in enumerate(answer["ranks"])
            for name, checksum in held["checksums"].items()
        }
    except (AttributeError, KeyError, TypeError) as error:
        raise RefusedError(f"{url}{route} answered {str(answer)[:300]}", [url]) from error
