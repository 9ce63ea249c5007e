"""What happens to a real SGLang server while it samples: publishes, deaths, other users."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import psutil
import pytest

from megatron_r1.config.rollout import AtPublish
from megatron_r1.errors import EngineError
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.rollout.server_api import checksums, samples_one
from megatron_r1.rollout.servers import Servers, Weights
from megatron_r1.stages.rollout_engine import weight_transport
from megatron_r1.types import VersionSpan, spans
from megatron_r1.weights.transport import WeightTransport
from tests.rollout.served import MAX_GAP, needs_sglang, prompts, put, serve, worst_gap
from tests.test_bad_input import refused

pytestmark = needs_sglang


@pytest.fixture(scope="module")
def deepseek(one_rank, tokenizer, tmp_path_factory):
    settings = ["rollout.routed_experts=true", "rollout.health_every_s=2"]
    settings += ["rollout.health_timeout_s=12"]
    root = tmp_path_factory.mktemp("faults")
    with serve(one_rank, tokenizer, root, "deepseek_v3", *settings) as served:
        served.engine.publish(0)
        yield served


def test_servers_of_a_collecting_stage_end_with_the_collecting(deepseek, tokenizer):
    servers = deepseek.session.servers
    with deepseek.session.collecting(deepseek.policy, tokenizer) as engine:
        engine.publish(0)
        [pid], urls = servers.pids, servers.urls
        assert samples_one(urls[0], timeout_s=60)
    assert not servers.pids and not psutil.pid_exists(pid)
    deepseek.engine.publish(0)  # whoever samples after that has them started
    assert servers.pids and servers.num_restarts == 0
    assert worst_gap(deepseek, 0) < MAX_GAP


def test_a_rollout_goes_on_across_a_publish_and_says_so(deepseek):
    """Tokens before it have the old weights' log-probabilities, those after it the new ones'."""
    asked = prompts(4)
    before = deepseek.version
    old = {name: p.detach().clone() for name, p in deepseek.policy.named_parameters()}
    result = {}

    def sample():
        result.update(deepseek.generate(asked, version=before, max_response_tokens=400))

    thread = threading.Thread(target=sample)
    thread.start()
    [url] = deepseek.session.servers.urls
    time.sleep(0.5)
    for _ in range(5):  # each is a pass at least, and those before it in the queue took part
        assert samples_one(url, timeout_s=60)
    assert thread.is_alive()
    deepseek.publish_changed(before + 1, seed=9)
    thread.join()

    continued = {key: r for key, r in result.items() if r.version_spans}
    assert continued
    for (draw, _), rollout in continued.items():
        first, second = rollout.version_spans
        assert first == VersionSpan(before, 0, second.start)
        assert second == VersionSpan(before + 1, first.stop, len(rollout.token_ids))
        assert rollout.weight_version == before + 1
        assert deepseek.gap(asked[draw], rollout)[second.start :].abs().max() < MAX_GAP
        assert deepseek.gap(asked[draw], rollout)[: first.stop].abs().max() > 10 * MAX_GAP
    new = {name: p.detach().clone() for name, p in deepseek.policy.named_parameters()}
    put(deepseek, old)
    for (draw, _), rollout in continued.items():
        stop = rollout.version_spans[0].stop
        assert deepseek.gap(asked[draw], rollout)[:stop].abs().max() < MAX_GAP
    put(deepseek, new)


def test_what_was_started_ahead_is_waited_for_or_goes_on_after_the_publish(deepseek, tokenizer):
    asked, version = prompts(4), deepseek.version
    params = SamplingParams(2, max_response_tokens=400, temperature=0.9, top_p=1.0, top_k=0, seed=1)
    session = deepseek.session
    [url] = session.servers.urls
    versions: dict[AtPublish, set[int]] = {}
    for at_publish in AtPublish:
        rollout = dataclasses.replace(session.config.rollout, at_publish=at_publish)
        config = dataclasses.replace(session.config, rollout=rollout)
        engine = dataclasses.replace(session, config=config).engine(deepseek.policy, tokenizer)
        engine.publish(version)
        engine.start_ahead(asked, params)
        time.sleep(0.5)
        for _ in range(5):
            assert samples_one(url, timeout_s=60)
        engine.publish(version + 1)
        groups = list(engine.generate(asked, params, weight_version=version + 1))
        assert sorted(group.prompt.draw for group in groups) == [0, 1, 2, 3]
        rollouts = [rollout for group in groups for rollout in group.rollouts]
        assert len(rollouts) == 8
        versions[at_publish] = {span.version for r in rollouts for span in spans(r)}
    assert versions == {
        AtPublish.wait: {version},
        AtPublish.retract: {version, version + 1},
    }
    deepseek.engine.publish(version)  # those were engines of other owners


def scheduler_of(pid: int) -> int:
    """The process that has the model."""
    children = psutil.Process(pid).children(recursive=True)
    [found] = [child.pid for child in children if "scheduler" in " ".join(child.cmdline())]
    return found


@pytest.mark.parametrize(
    ("signal_number", "only_scheduler"),
    [(signal.SIGKILL, False), (signal.SIGSTOP, False), (signal.SIGSTOP, True)],
)
def test_a_server_that_dies_or_freezes_is_started_again(deepseek, signal_number, only_scheduler):
    version = deepseek.version
    asked = prompts(6)
    undisturbed = deepseek.generate(asked, version=version, max_response_tokens=60)
    [pid], [url] = deepseek.session.servers.pids, deepseek.session.servers.urls
    held = checksums(url, timeout_s=30)
    hits = []

    def strike(finished: int, tokens: int) -> None:
        if not hits:
            if only_scheduler:
                os.kill(scheduler_of(pid), signal_number)
            else:
                os.killpg(pid, signal_number)
            hits.append(finished)

    rollouts = deepseek.generate(asked, version=version, max_response_tokens=60, on_progress=strike)
    assert hits and hits[0] < len(rollouts)
    assert deepseek.session.servers.pids != [pid] and deepseek.session.servers.urls == [url]
    # What a server reads when it starts is what the one before it was given while it ran.
    assert checksums(url, timeout_s=30) == held
    assert deepseek.engine.take_metrics()["rollout/server_restarts"][0] >= 1
    # Every response once, from the weights that were published last, and the same as ever.
    assert rollouts.keys() == undisturbed.keys()
    assert all(r.weight_version == version for r in rollouts.values())
    assert {k: r.token_ids for k, r in rollouts.items()} == {
        k: r.token_ids for k, r in undisturbed.items()
    }


class StruckTransport:
    """Sends as another does, but once a server is killed just before."""

    def __init__(self, transport: WeightTransport, pid: int) -> None:
        self._transport = transport
        self._pid: int | None = pid

    def prepare(self, label: str) -> Weights:
        return self._transport.prepare(label)

    def close(self) -> None:
        self._transport.close()

    def join(self, urls: Sequence[str]) -> None:
        self._transport.join(urls)

    def send(self, label: str, urls: Sequence[str]) -> Mapping[str, float]:
        if self._pid is not None:
            os.killpg(self._pid, signal.SIGKILL)
            self._pid = None
        return self._transport.send(label, urls)


@contextmanager
def killing(servers: Servers, spared: Sequence[int] = (), most: int = 100) -> Iterator[list[int]]:
    """Kill servers as soon as they are started, and yield the list of those that were."""
    killed: list[int] = []
    over = threading.Event()

    def strike() -> None:
        while not over.wait(0.05) and len(killed) < most:
            for pid in {*servers.pids} - {*spared, *killed}:
                os.killpg(pid, signal.SIGKILL)
                killed.append(pid)

    thread = threading.Thread(target=strike)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_a_server_that_dies_in_a_publish_gets_it_again(deepseek, tokenizer):
    """Also when it dies again while it starts."""
    version = deepseek.version + 1
    session = deepseek.session
    pids, restarts = session.servers.pids, session.servers.num_restarts
    config = session.config
    transport = weight_transport(deepseek.policy, tokenizer, config.rollout, session.run_dir)
    struck = StruckTransport(transport, pids[0])
    deepseek.engine = session.engine(deepseek.policy, tokenizer, transport=struck)
    with killing(session.servers, pids, most=1) as killed:
        metrics = deepseek.engine.publish(version)
    assert metrics["publish/attempts"] == 2
    assert len(killed) == 1 and session.servers.num_restarts == restarts + 2
    assert worst_gap(deepseek, version) < MAX_GAP


def test_servers_that_never_start_end_the_run(one_rank, tokenizer, tmp_path):
    """After `max_restarts`, where they are killed; at once, where they end of themselves."""
    settings = ["rollout.max_restarts=1", "+rollout.server_args={no-such-switch: yes}"]
    with serve(one_rank, tokenizer, tmp_path, "deepseek_v3", *settings) as served:
        with (
            killing(served.session.servers) as killed,
            pytest.raises(EngineError, match="has ended, after rollout.max_restarts = 1 restarts"),
        ):
            served.engine.publish(0)
        assert len(killed) == 2
        with pytest.raises(EngineError, match=r"ended while it started(.|\n)*no-such-switch"):
            served.engine.publish(0)


def test_a_running_server_is_attached_to_and_two_runs_on_it_are_noticed(
    deepseek, one_rank, tokenizer, tmp_path
):
    version = deepseek.version
    [url] = deepseek.session.servers.urls
    running = [f"rollout.urls=[{url}]", "rollout.routed_experts=true"]
    with serve(one_rank, tokenizer, tmp_path, "deepseek_v3", *running) as attached:
        attached.engine.publish(5)
        assert worst_gap(attached, 5) < MAX_GAP
        with pytest.raises(EngineError, match=r"weights 5\.\w+, which this run never published"):
            deepseek.generate(prompts(1), version=version)
    deepseek.engine.publish(version)
    assert worst_gap(deepseek, version) < MAX_GAP


def test_a_server_of_another_model_is_refused(deepseek, tmp_path):
    [url] = deepseek.session.servers.urls
    overrides = ["stage=r1_zero", "rollout=sglang", f"rollout.urls=[{url}]", f"run.root={tmp_path}"]
    overrides += ["rollout.max_response_tokens=16", "data.max_prompt_tokens=64"]
    overrides += [f"model.init_from={tmp_path}"]
    message = refused(*overrides, "model=tiny_dense")
    assert "EngineError" in message and f"the server at {url} serves another model" in message
    assert "DeepseekV3ForCausalLM" in message and "Qwen2ForCausalLM" in message
    # Of the same architecture, but with 16 experts where tiny_v3 has 8.
    message = refused(*overrides, "model=tiny_v3")
    assert "num_experts 16 instead of 8" in message
