"""When servers sample again after a publish, and who is started anew when it fails."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.rollout.servers import Weights
from megatron_r1.weights.publish import Publisher
from megatron_r1.weights.transport import SendError

pytestmark = pytest.mark.megatron  # process groups


class Holder(ThreadingHTTPServer):
    """A server that says which weights it holds, as far as that goes over HTTP."""

    label = ""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"weight_version": self.server.label})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._answer({"ranks": [{"checksums": {"w": self.server.label}}]})

        def _answer(self, body: dict) -> None:
            data = json.dumps(body).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: object) -> None:
            pass

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class ScriptedServers:
    """Notes what it is told."""

    def __init__(self, holders: Sequence[Holder]) -> None:
        self._holders = holders
        self.told: list[tuple] = []

    @property
    def urls(self) -> list[str]:
        return [holder.url for holder in self._holders]

    def bring_up(self, weights: Weights, at_fault: Sequence[str] = ()) -> list[str]:
        self.told.append(("bring up", *map(self.urls.index, at_fault)))
        for holder in self._holders:
            if holder.url in at_fault:
                holder.label = weights.label
        return list(at_fault)

    def pause(self, urls: Sequence[str]) -> None:
        self.told.append(("pause", *map(self.urls.index, urls)))

    def resume(self, urls: Sequence[str]) -> None:
        self.told.append(("resume", *map(self.urls.index, urls)))


class ScriptedTransport:
    """Fails at given servers, attempt by attempt."""

    def __init__(
        self, holders: Sequence[Holder], failures: Sequence[Sequence[int]], *, old: bool = False
    ) -> None:
        self.joined: list[str] = []
        self._holders = holders
        self._failures = list(failures)
        self._start_from = "0.older" if old else None

    def prepare(self, label: str) -> Weights:
        return Weights(Path("/nowhere"), self._start_from or label)

    def join(self, urls: Sequence[str]) -> None:
        self.joined = list(urls)

    def send(self, label: str, urls: Sequence[str]) -> Mapping[str, float]:
        assert urls == self.joined
        failed = self._failures.pop(0) if self._failures else []
        for number, holder in enumerate(self._holders):
            if holder.url in urls and number not in failed:
                holder.label = label
        if failed:
            raise SendError("bucket 3 of 7", [self._holders[number].url for number in failed])
        return {"publish/wire_s": 1.0}

    def close(self) -> None: ...


@pytest.fixture
def holders() -> Iterator[list[Holder]]:
    servers = [Holder(("127.0.0.1", 0), Holder.Handler) for _ in range(2)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield servers
    for server in servers:
        server.shutdown()
        server.server_close()


def publish(holders, failures, **options) -> tuple[list[tuple], float]:
    servers = ScriptedServers(holders)
    transport = ScriptedTransport(holders, failures, **options)
    metrics = Publisher(transport, servers, SglangConfig()).publish(4)
    assert metrics["publish/pause_s"] > 0 and metrics["publish/wire_s"] == 1.0
    assert all(holder.label.startswith("4.") for holder in holders)
    return servers.told, metrics["publish/attempts"]


def test_a_publish_without_trouble(one_rank, holders):
    told, attempts = publish(holders, [])
    assert told == [("bring up",), ("pause", 0, 1), ("resume", 0, 1)] and attempts == 1


def test_servers_stay_paused_until_a_repeated_send_is_whole(one_rank, holders):
    told, attempts = publish(holders, [[1]])
    assert attempts == 2
    assert told == [("bring up",), ("pause", 0, 1)] * 2 + [("resume", 0, 1)]


def test_who_fails_twice_running_is_started_anew(one_rank, holders):
    told, attempts = publish(holders, [[1], [1]])
    assert attempts == 3
    # It was started from files of these weights, and is sent none.
    assert told[4:] == [("bring up", 1), ("pause", 0), ("resume", 0, 1)]


def test_who_was_started_from_older_files_is_sent_the_newer_weights(one_rank, holders):
    told, _ = publish(holders, [[1], [1]], old=True)
    assert told[4:] == [("bring up", 1), ("pause", 0, 1), ("resume", 0, 1)]


def test_a_server_that_holds_something_else_is_found_out(one_rank, holders):
    class Forgetful(ScriptedTransport):
        def send(self, label, urls):
            metrics = super().send(label, urls)
            self._holders[0].label = "0.older"
            return metrics

    servers = ScriptedServers(holders)
    publisher = Publisher(Forgetful(holders, []), servers, SglangConfig())
    with pytest.raises(EngineError, match=r"3 attempts.*holds weights '0.older'") as said:
        publisher.publish(4)
    assert "left paused" in str(said.value)
    assert ("resume", 0, 1) not in servers.told
