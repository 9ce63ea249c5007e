"""Rollout nodes and the trainer on one board: who waits for whom, and what ends both."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.errors import ConfigError, EngineError
from megatron_r1.rollout.remote_servers import RemoteServers
from megatron_r1.rollout.servers import Weights
from megatron_r1.rollout.serving_board import NodeReport, ServingBoard, Wanted


def remote(board: ServingBoard, *, num_nodes: int, timeout_s: float = 20.0) -> RemoteServers:
    config = load_config(["rollout=sglang", f"rollout.start_timeout_s={timeout_s}"])
    return RemoteServers(
        board, config.rollout, config.model, num_nodes=num_nodes, show_progress=False
    )


def test_a_board_keeps_what_each_side_wrote_last(tmp_path: Path):
    board, other = ServingBoard(tmp_path / "start"), ServingBoard(tmp_path / "start")
    assert board.wanted() is None and board.report_of(0) == NodeReport() and not board.is_over
    board.want(Weights(Path("/w/0"), "0.ab"))
    board.want(Weights(Path("/w/1"), "1.ab"), attempt=2, at_fault=["http://a:1"])
    assert other.wanted() == Wanted(Weights(Path("/w/1"), "1.ab"), 2, ("http://a:1",))
    report = NodeReport("1.ab", ("http://a:1", "http://a:2"), ("http://a:2",), num_restarts=3)
    other.report(1, report)
    assert board.report_of(1) == report and board.report_of(0) == NodeReport()
    board.end()
    assert other.is_over
    assert other.last_beat() == ""
    board.beat(3)
    assert other.last_beat() == "3"
    assert not ServingBoard(tmp_path / "next").is_over


def test_a_node_that_gives_up_ends_the_run_with_its_reason(tmp_path: Path):
    board = ServingBoard(tmp_path)
    servers = remote(board, num_nodes=2)
    board.report(0, NodeReport("0.ab"))
    board.report(1, NodeReport(failure="SGLang is not installed"))
    with pytest.raises(EngineError, match="rollout node 1: SGLang is not installed"):
        servers.bring_up(Weights(tmp_path, "0.ab"))
    with pytest.raises(EngineError, match="rollout node 1"):
        servers.look_after()
    started_s = time.monotonic()
    board.report(0, NodeReport("0.ab", has_ended=True))
    servers.close()  # waits for no one who has gone
    assert board.is_over and time.monotonic() - started_s < 5


def test_a_node_that_never_comes_is_named_after_the_time_limit(tmp_path: Path):
    board = ServingBoard(tmp_path)
    board.report(0, NodeReport("0.ab"))
    with pytest.raises(EngineError, match="1 of 2 rollout nodes did not bring up"):
        remote(board, num_nodes=2, timeout_s=0.5).bring_up(Weights(tmp_path, "0.ab"))


def test_it_ends_when_the_nodes_have_ended(tmp_path: Path):
    board = ServingBoard(tmp_path)
    servers = remote(board, num_nodes=1)

    def node() -> None:
        while not board.is_over:
            time.sleep(0.05)
        time.sleep(0.5)
        board.report(0, NodeReport(has_ended=True))

    thread = threading.Thread(target=node)
    thread.start()
    servers.close()
    assert board.report_of(0).has_ended
    thread.join()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("experiment=quickstart", "rollout.name = inprocess has no servers"),
        (
            "experiment=quickstart rollout=sglang rollout.urls=[http://a:1]",
            "rollout.urls names some that run already",
        ),
        ("stage=sft stage.examples=x stage.max_tokens=64", "stage.name = sft asks none"),
        ("rollout=sglang stage=tiny_base", "stage.name = tiny_base asks none"),
    ],
)
def test_rollout_nodes_without_servers_of_theirs_are_refused(overrides: str, message: str):
    config = load_config(["cluster=slurm_onehost", "cluster.rollout_nodes=1", *overrides.split()])
    with pytest.raises(ConfigError, match=message):
        config.validate(1)
