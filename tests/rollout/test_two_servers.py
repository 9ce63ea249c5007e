"""Two real SGLang servers of one run: what befalls one of them, and what both are given wrongly."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Callable, Mapping, Sequence

import pytest
import torch

from megatron_r1.config.rollout import WeightsBy
from megatron_r1.rollout.server_api import checksums
from megatron_r1.rollout.servers import Weights
from megatron_r1.rollout.sglang import SglangEngine
from megatron_r1.stages.rollout_engine import weight_transport
from megatron_r1.weights.transport import WeightTransport
from tests.rollout.served import MAX_GAP, Served, needs_sglang, prompts, serve, worst_gap

pytestmark = needs_sglang

Undo = Callable[[], None]


@pytest.fixture(scope="module")
def two(one_rank, tokenizer, tmp_path_factory):
    settings = ["rollout.num_servers=2", "rollout.max_batch=4", "rollout.health_every_s=2"]
    settings += ["rollout.health_timeout_s=25", "rollout.bucket_bytes=1048576"]
    with serve(one_rank, tokenizer, tmp_path_factory.mktemp("two"), "qwen2.5", *settings) as served:
        served.engine.publish(0)
        yield served


class Before:
    """Sends as another does, but once something is done before, and undone after."""

    def __init__(self, transport: WeightTransport, act: Callable[[], Undo | None]) -> None:
        self._transport = transport
        self._act: Callable[[], Undo | None] | None = act

    def prepare(self, label: str) -> Weights:
        return self._transport.prepare(label)

    def join(self, urls: Sequence[str]) -> None:
        self._transport.join(urls)

    def send(self, label: str, urls: Sequence[str]) -> Mapping[str, float]:
        act, self._act = self._act, None
        if act is None:
            return self._transport.send(label, urls)
        undo = act()
        try:
            return self._transport.send(label, urls)
        finally:
            if undo is not None:
                undo()

    def close(self) -> None:
        self._transport.close()


def engine_by(
    two: Served, way: WeightsBy, tokenizer, act: Callable[[], Undo | None]
) -> SglangEngine:
    """The engine of a run with the same servers, whose next send `act` precedes."""
    session = two.session
    rollout = dataclasses.replace(session.config.rollout, weights_by=way)
    config = dataclasses.replace(session.config, rollout=rollout)
    transport = weight_transport(two.policy, tokenizer, rollout, session.run_dir)
    session = dataclasses.replace(session, config=config)
    return session.engine(two.policy, tokenizer, transport=Before(transport, act))


def test_one_is_killed_and_started_again_while_the_other_goes_on(two):
    asked, servers = prompts(6), two.session.servers
    two.engine.publish(0)  # engines of other owners may have been here
    undisturbed = two.generate(asked, version=0, max_response_tokens=60)
    pids, restarts = servers.pids, servers.num_restarts
    hits = []

    def strike(finished: int, tokens: int) -> None:
        if not hits:
            os.killpg(pids[0], signal.SIGKILL)
            hits.append(finished)

    rollouts = two.generate(asked, version=0, max_response_tokens=60, on_progress=strike)
    assert hits and hits[0] < len(rollouts) == 24
    assert {k: r.token_ids for k, r in rollouts.items()} == {
        k: r.token_ids for k, r in undisturbed.items()
    }
    two.engine.publish(0)  # waits for a start that is under way
    assert servers.num_restarts == restarts + 1
    assert servers.pids[1] == pids[1] and servers.pids[0] != pids[0]


def test_one_that_freezes_while_it_reads_files_is_started_anew(two, tokenizer):
    """Long before `publish_timeout_s`; both then hold the same."""
    pids = two.session.servers.pids
    engine = engine_by(
        two, WeightsBy.directory, tokenizer, lambda: os.killpg(pids[1], signal.SIGSTOP)
    )
    metrics = engine.publish(1)
    assert metrics["publish/attempts"] == 2
    assert two.session.servers.pids[0] == pids[0] and two.session.servers.pids[1] != pids[1]
    held = [checksums(url, timeout_s=60) for url in two.session.servers.urls]
    assert held[0] == held[1]
    served = Served(two.policy, engine, two.session)
    assert worst_gap(served, 1) < MAX_GAP


def test_buckets_of_other_weights_are_found_out_though_both_got_the_same(two, tokenizer):
    """One element of one weight is wrong while they are sent: the files have what is right."""
    weight = dict(two.policy.named_parameters())["decoder.final_layernorm.weight"]

    def spoil() -> Undo:
        with torch.no_grad():
            weight[3] += 0.5

        def mend() -> None:
            with torch.no_grad():
                weight[3] -= 0.5

        return mend

    engine = engine_by(two, WeightsBy.collective, tokenizer, spoil)
    assert engine.publish(2)["publish/attempts"] == 2
    served = Served(two.policy, engine, two.session)
    assert worst_gap(served, 2) < MAX_GAP
    engine.close()
