"""When servers sample again after a publish, and who is started anew when it fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.rollout.server_api import NoAnswerError, RefusedError, checksums, load_files
from megatron_r1.rollout.servers import Servers, Weights, pause_servers
from megatron_r1.stages.rollout_engine import weight_transport
from megatron_r1.weights.engine_requests import find_engine
from megatron_r1.weights.hf_config import hf_config
from megatron_r1.weights.publish import Publisher
from megatron_r1.weights.publish_check import check_weights
from megatron_r1.weights.transport import SendError
from tests.models.families import load_family
from tests.rollout.http_double import Answer, http_server

pytestmark = pytest.mark.megatron  # process groups


class Holder(ThreadingHTTPServer):
    """A server that says which weights it holds, as far as that goes over HTTP."""

    label = ""
    num_compared = 0

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer({"weight_version": self.server.label})

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.server.num_compared += self.path == "/weights_checker"
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
    metrics = Publisher(transport, servers, SglangConfig(check_weights_every=1)).publish(4)
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


def versions_compared(holders, config: SglangConfig, transport: ScriptedTransport) -> list[int]:
    publisher = Publisher(transport, ScriptedServers(holders), config)
    compared = []
    for version in range(8):
        before = holders[1].num_compared
        publisher.publish(version)
        compared += [version] * (holders[1].num_compared - before)
    return compared


@pytest.mark.parametrize(("every", "expected"), [(3, [1, 4, 7]), (1, [*range(8)]), (0, [])])
def test_weights_are_compared_at_the_second_publish_and_then_now_and_then(
    one_rank, holders, every, expected
):
    config = SglangConfig(check_weights_every=every)
    assert versions_compared(holders, config, ScriptedTransport(holders, [])) == expected


def test_weights_are_compared_when_there_are_files_of_them(one_rank, holders):
    """Files are written at publishes 0, 3 and 6, and comparing is due at 1 and 4."""

    class Rarely(ScriptedTransport):
        def prepare(self, label: str) -> Weights:
            version = int(label.partition(".")[0])
            return Weights(Path("/nowhere"), label if version % 3 == 0 else "0.older")

    config = SglangConfig(check_weights_every=3, start_files_every=3)
    assert versions_compared(holders, config, Rarely(holders, [])) == [3, 6]


def test_nothing_is_written_for_servers_that_are_not_this_runs(one_rank, tokenizer, tmp_path):
    settings = ["rollout=sglang", "rollout.urls=[http://a:1]", "rollout.weights_by=collective"]
    config = load_family("qwen2.5", *settings)
    transport = weight_transport(one_rank.policy(config), tokenizer, config.rollout, tmp_path)
    assert [transport.prepare(label).label for label in ("0.mine", "1.mine")] == [
        "0.mine",
        "1.mine",
    ]
    assert not list(tmp_path.iterdir())


class Engine:
    """One that gets weights in buckets, as far as that goes over HTTP; and reads files."""

    def __init__(self, stack: ExitStack, **tensors: str) -> None:
        self.tensors = dict(tensors)
        self.told: list[str] = []
        self.url = stack.enter_context(http_server(self._answer))

    def _answer(self, route: str, body: Any) -> Any:
        self.told.append(route)
        if route == "/update_weights_from_disk":
            self.tensors = json.loads(Path(body["model_path"], "weights.json").read_text())
        return {"ranks": [{"checksums": dict(self.tensors)}]}


def test_what_was_sent_is_compared_with_the_files_of_the_same_weights(tmp_path):
    """By one server, which reads them; where one was started from them, with that one."""
    (tmp_path / "weights.json").write_text(json.dumps({"a": "1", "b": "2"}))
    files = Weights(tmp_path, "4.mine")
    options = {"may_be_unlike": False, "timeout_s": 9, "silence_s": 9}
    with ExitStack() as stack:
        right, wrong = Engine(stack, a="1", b="2"), Engine(stack, a="1", b="3")
        read = ["/weights_checker", "/update_weights_from_disk", "/weights_checker"]
        check_weights([right.url], by_buckets=[right.url], files=files, **options)
        assert right.told == read
        with pytest.raises(SendError, match=f"{wrong.url} and .*{tmp_path} .* in 0/b at") as said:
            check_weights([wrong.url], by_buckets=[wrong.url], files=files, **options)
        assert said.value.urls == (wrong.url,)
        wrong.tensors["b"], urls = "3", [right.url, wrong.url]
        with pytest.raises(SendError, match=f"{wrong.url} and .*{tmp_path}"):
            check_weights(urls, by_buckets=urls, files=files, **options)
        with pytest.raises(SendError, match=f"{wrong.url} and {right.url}") as said:
            check_weights(urls, by_buckets=[wrong.url], files=files, **options)
        assert set(said.value.urls) == set(urls)
        assert wrong.told.count("/update_weights_from_disk") == 1
        right.told.clear()
        check_weights([right.url], by_buckets=[], files=files, **options)
        check_weights([right.url], by_buckets=[right.url], files=None, **options)
        assert not right.told  # alone, with nothing to compare it with


def test_servers_of_unlike_layouts_are_compared_with_their_like():
    with ExitStack() as stack:
        whole = Engine(stack, qkv="1")
        halves = [Engine(stack, q="2", k=k) for k in ("3", "4")]
        options = {"by_buckets": [], "files": None, "timeout_s": 9, "silence_s": 9}
        urls = [whole.url, *(half.url for half in halves)]
        check_weights(urls[:2], may_be_unlike=True, **options)
        with pytest.raises(SendError, match=f"{urls[2]} and {urls[1]} .* in 0/k at least"):
            check_weights(urls, may_be_unlike=True, **options)
        with pytest.raises(SendError, match="different weights"):
            check_weights(urls[:2], may_be_unlike=False, **options)


def test_a_server_that_falls_silent_while_it_loads_is_found_out():
    """It is asked whether it listens. One that does may take its time."""

    def slow(route: str, body: Any) -> Any:
        time.sleep(1.0 if route == "/update_weights_from_disk" else 0)
        return {}

    with http_server(slow) as busy, http_server(lambda route, body: None) as frozen:
        limits = {"timeout_s": 60, "silence_s": 0.3}
        load_files(busy, Path("/w"), "4.mine", **limits)
        started_s = time.monotonic()
        with pytest.raises(NoAnswerError, match="it said nothing for 0.3 s") as said:
            load_files(frozen, Path("/w"), "4.mine", **limits)
        assert said.value.urls == (frozen,) and time.monotonic() - started_s < 5


def test_orders_go_to_all_servers_at_once_and_name_those_that_fail(one_rank, holders):
    def slow(route: str, body: Any) -> Any:
        time.sleep(0.5)
        return {}

    def refusing(route: str, body: Any) -> Any:
        time.sleep(0.5)
        return 500

    with ExitStack() as stack:
        urls = [stack.enter_context(http_server(answer)) for answer in (slow, slow, refusing)]
        started_s = time.monotonic()
        with pytest.raises(RefusedError, match="/pause_generation answered 500") as said:
            pause_servers(urls)
        assert said.value.urls == (urls[2],) and time.monotonic() - started_s < 1.2

        class Refusing(ScriptedServers):
            def pause(self, _: Sequence[str]) -> None:
                self.told.append(("pause",))
                pause_servers(urls[1:])

            def bring_up(self, weights: Weights, at_fault: Sequence[str] = ()) -> list[str]:
                self.told.append(tuple(at_fault))
                return []

        servers = Refusing(holders)
        publisher = Publisher(ScriptedTransport(holders, []), servers, SglangConfig())
        with pytest.raises(EngineError, match="in 3 attempts; the last time: .* answered 500"):
            publisher.publish(4)
        assert servers.told[::2] == [(), (), (urls[2],)]


def test_garbage_is_an_engines_fault():
    with http_server(lambda route, body: ["garbage"]) as url:
        with pytest.raises(RefusedError, match=f"{url}/weights_checker answered"):
            checksums(url, timeout_s=9)
        with pytest.raises(SendError, match=f"{url}/server_info names no tp_size"):
            find_engine(url, timeout_s=9)


def test_a_server_of_others_that_stays_paused_ends_the_run():
    """After some attempts; and one that goes on at the second is well."""
    model, left = load_config(["model=tiny_v3"]).model, [1, 10]

    def paused(number: int) -> Answer:
        def answer(route: str, body: Any) -> Any:
            if route == "/continue_generation":
                left[number] -= 1
                return 503 if left[number] >= 0 else {}
            return {"architectures": hf_config(model)["architectures"]}

        return answer

    with http_server(paused(0)) as once, http_server(paused(1)) as ever:
        config = SglangConfig(urls=[once, ever], keyed_sampling=False)
        servers = Servers(config, model, dtype="float32", log_dir=Path("/nowhere"), on_cuda=True)
        try:
            servers.resume([once])
            with pytest.raises(EngineError, match=f"{ever}/continue_generation answered 503"):
                servers.resume([once, ever])
        finally:
            servers.close()
