"""Servers that a job starts, looks after and starts again: another program in SGLang's place."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.rollout.servers import Servers, Weights
from megatron_r1.weights.hf_config import hf_config

pytest.importorskip("aiohttp")

MODEL = load_config(["model=tiny_v3"]).model
DOUBLE = Path(__file__).with_name("process_double")


@pytest.fixture
def in_sglangs_place(monkeypatch) -> None:
    monkeypatch.syspath_prepend(DOUBLE)
    monkeypatch.setenv("PYTHONPATH", str(DOUBLE))


@pytest.fixture
def servers(in_sglangs_place, tmp_path: Path) -> Iterator[Servers]:
    """One server, which is started again once between two publishes."""
    [architecture] = hf_config(MODEL)["architectures"]
    config = SglangConfig(
        keyed_sampling=False,
        max_restarts=1,
        health_every_s=0.1,
        server_args={"architecture": architecture, "starts": str(tmp_path / "starts")},
    )
    made = Servers(
        config, MODEL, dtype="float32", log_dir=tmp_path, on_cuda=True, show_progress=False
    )
    yield made
    made.close()


def look(servers: Servers) -> None:
    """Until what that sets going is done."""
    servers.look_after()
    servers._keeper.submit(int).result()


def test_servers_that_were_not_started_or_were_released_are_not_missed(servers, tmp_path):
    """Leaders that wait for each other look at them before the first publish."""

    def look_twice() -> None:
        for _ in range(2):
            look(servers)
            time.sleep(0.15)
        servers.look_after()

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
        servers.look_after()
