"""What a rollout server is asked outside of sampling: its health, its model, its weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

_OPENER = build_opener(ProxyHandler({}))  # servers are in the cluster, never behind a proxy


class NoAnswerError(Exception):
    """Nothing came back in time: no server, a dead one, or one that hangs."""


class RefusedError(Exception):
    """The server answered, and will not do it."""


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
        raise RefusedError(f"{url}{route} answered {error.code}: {words}") from error
    except (OSError, HTTPException) as error:
        raise NoAnswerError(f"{url}{route}: {error}") from error
    try:
        value = json.loads(answer)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def is_healthy(url: str, *, timeout_s: float) -> bool:
    """Whether the whole server works, busy or not: it answers when any part of its model's work is
    done, after a second at least."""
    return _succeeds(url, "/health", None, timeout_s)


def samples_at_once(url: str, *, timeout_s: float) -> bool:
    """The same of an idle server, in milliseconds. On a busy one the token has to wait its turn."""
    one_token = {"input_ids": [0], "sampling_params": {"max_new_tokens": 1}}
    return _succeeds(url, "/generate", one_token, timeout_s)


def obeys(url: str, *, timeout_s: float) -> bool:
    """Whether the whole server takes orders, paused or not. No token is sampled."""
    return _succeeds(url, "/server_info", None, timeout_s)


def _succeeds(url: str, route: str, body: Mapping[str, Any] | None, timeout_s: float) -> bool:
    try:
        call(url, route, body, timeout_s=timeout_s)
    except (NoAnswerError, RefusedError):
        return False
    return True


def weight_label(url: str, *, timeout_s: float) -> str:
    """Name of the weights that a server says it holds."""
    return str(call(url, "/model_info", timeout_s=timeout_s).get("weight_version"))


def checksums(url: str, *, timeout_s: float) -> dict[str, str]:
    """Checksum of every tensor in a server, as ``rank/name``, in its own layout."""
    answer = call(url, "/weights_checker", {"action": "checksum"}, timeout_s=timeout_s)
    return {
        f"{rank}/{name}": checksum
        for rank, held in enumerate(answer["ranks"])
        for name, checksum in held["checksums"].items()
    }
