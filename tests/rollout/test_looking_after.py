"""Servers that a job starts, looks after and starts again: another program in SGLang's place."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.rollout.servers import Servers, Weights
from megatron_r1.rollout.serving_board import ServingBoard
from megatron_r1.rollout.sglang import SglangEngine
from megatron_r1.serve import serve_until_over
from megatron_r1.types import RolloutGroup
from megatron_r1.weights.hf_config import hf_config
from tests.rollout.http_double import http_server
from tests.rollout.test_requests import PROMPTS
from tests.rollout.test_servers import wait_for

pytest.importorskip("aiohttp")

MODEL = load_config(["model=tiny_v3"]).model
DOUBLE = Path(__file__).with_name("process_double")


@pytest.fixture
def in_sglangs_place(monkeypatch) -> None:
    monkeypatch.syspath_prepend(DOUBLE)
    monkeypatch.setenv("PYTHONPATH", str(DOUBLE))


@contextmanager
def own_servers(directory: Path, **server_args: object) -> Iterator[Servers]:
    """One server, which is started again once between two publishes."""
    [architecture] = hf_config(MODEL)["architectures"]
    args = {"architecture": architecture, "starts": directory / "starts", **server_args}
    config = SglangConfig(
        keyed_sampling=False,
        max_restarts=1,
        health_every_s=0.1,
        server_args={name: str(value) for name, value in args.items()},
    )
    made = Servers(
        config, MODEL, dtype="float32", log_dir=directory, on_cuda=True, show_progress=False
    )
    with closing(made):
        yield made


@pytest.fixture
def servers(in_sglangs_place, tmp_path: Path) -> Iterator[Servers]:
    with own_servers(tmp_path) as made:
        yield made


def look(servers: Servers) -> None:
    """Until what that sets going is done."""
    servers.look_after({})
    servers._keeper.submit(int).result()


def test_servers_that_were_not_started_or_were_released_are_not_missed(servers, tmp_path):
    """Leaders that wait for each other look at them before the first publish."""

    def look_twice() -> None:
        for _ in range(2):
            look(servers)
            time.sleep(0.15)
        servers.look_after({})

    look_twice()
    servers.bring_up(Weights(tmp_path, "0.mine"))
    servers.release()
    look_twice()
    assert not servers.pids and servers.num_restarts == 0


def test_what_a_publish_has_mended_ends_no_run(servers, tmp_path):
    """A look that failed, and that nobody has asked about."""
    weights = Weights(tmp_path, "0.mine")
    servers.bring_up(weights)
    for _ in range(2):
        os.killpg(servers.pids[0], signal.SIGKILL)
        while servers._locals[0].process.exit_code is None:
            time.sleep(0.01)
        look(servers)
    assert servers.bring_up(weights) == servers.urls
    look(servers)  # raised that the server had been lost too often
    os.killpg(servers.pids[0], signal.SIGKILL)
    while servers._locals[0].process.exit_code is None:
        time.sleep(0.01)
    look(servers)
    with pytest.raises(EngineError, match="has ended, after rollout.max_restarts = 1 restarts"):
        servers.look_after({})


def test_a_publish_waits_for_servers_of_others_that_are_away(tmp_path):
    """And looks at those that come back, which may be others now."""
    info = {"architectures": hf_config(MODEL)["architectures"]}
    away = {"until_s": 0.0}

    def answer(route: str, body: object) -> dict | int:
        return info if time.monotonic() > away["until_s"] else 503

    with http_server(answer) as url, http_server(lambda route, body: info) as other:
        config = SglangConfig(urls=[url, other], keyed_sampling=False, health_timeout_s=2.0)
        servers = Servers(config, MODEL, dtype="float32", log_dir=tmp_path, on_cuda=True)
        with closing(servers):
            for away_s in (0.0, 1.0):
                away["until_s"] = time.monotonic() + away_s
                assert servers.bring_up(Weights(None, "0.mine")) == []
                assert time.monotonic() > away["until_s"]
            away["until_s"] = time.monotonic() + 60
            said = f"{url}.* within rollout.health_timeout_s = 2.0"
            with pytest.raises(EngineError, match=said):
                servers.bring_up(Weights(None, "1.mine"))
            away["until_s"], info["architectures"] = time.monotonic() + 0.5, ["Other"]
            with pytest.raises(EngineError, match="serves another model"):
                servers.bring_up(Weights(None, "1.mine"))


def sample(servers: Servers) -> list[RolloutGroup]:
    one = SimpleNamespace(rank=0, size=1)
    engine = SglangEngine(
        SglangConfig(),
        MODEL,
        SimpleNamespace(is_leader=True, replica=one, dp_cp=one),
        SimpleNamespace(decode=str, eos_id=8),
        SimpleNamespace(version=0, urls=servers.urls, owner="mine"),
        servers,
    )
    params = SamplingParams(1, 4, temperature=1.0, top_p=1.0, top_k=0, seed=1)
    return list(engine.generate(PROMPTS, params, weight_version=0))


@pytest.mark.parametrize("status", [200, 500])
def test_a_healthy_server_with_answers_nobody_can_use_is_started_again(
    in_sglangs_place, tmp_path, status
):
    with own_servers(tmp_path, illness=status, **{"illness-of-first": 1}) as servers:
        servers.bring_up(Weights(tmp_path, "0.mine"))
        assert len(sample(servers)) == len(PROMPTS)
        assert servers.num_restarts == 1


def test_one_that_stays_so_ends_the_run(in_sglangs_place, tmp_path):
    with own_servers(tmp_path, illness=500, **{"illness-of-first": 9}) as servers:
        servers.bring_up(Weights(tmp_path, "0.mine"))
        with pytest.raises(EngineError, match="cannot be used, after rollout.max_restarts = 1"):
            sample(servers)


def test_a_rollout_node_starts_anew_what_the_trainer_complains_of(servers, tmp_path):
    """Once: what came before the last start is over."""
    board = ServingBoard(tmp_path / "board")
    board.want(Weights(tmp_path, "0.mine"))
    node = threading.Thread(target=serve_until_over, args=(board, servers, 0))
    node.start()
    try:
        wait_for(lambda: board.report_of(0).label == "0.mine")
        pids = servers.pids
        board.complain({url: time.time() for url in servers.urls})
        wait_for(lambda: board.report_of(0).num_restarts == 1)
        wait_for(lambda: servers._look.done())
        time.sleep(0.5)
        assert servers.pids != pids and servers.num_restarts == 1
    finally:
        board.end()
        node.join()
