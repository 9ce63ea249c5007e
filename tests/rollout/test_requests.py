"""Requests to servers that are silent, foreign or busy, and who looks after them meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.rollout.request_pool import RequestPool
from megatron_r1.rollout.responses import ResponseRequest
from megatron_r1.rollout.sglang import SglangEngine
from megatron_r1.types import Prompt
from tests.rollout.http_double import Answer, http_server

pytest.importorskip("aiohttp")
pytest.importorskip("megatron.core")

PROMPTS = [Prompt(str(i), i, "", "", (5, 6), "", "exact") for i in range(4)]


def silent(route: str, body: object) -> None:
    return None


def good(route: str, body: object) -> dict:
    return {
        "output_ids": [8],
        "meta_info": {
            "finish_reason": {"type": "stop", "matched": 8},
            "output_token_logprobs": [[-1.5, 8, None]],
            "weight_versions": [{"version": "3.mine", "start": 0, "end": 1}],
        },
    }


def ask(*answers: Answer, patience: float = 1.0, **settings: float) -> RequestPool:
    """Ask servers that answer so for one response to each prompt."""
    config = SglangConfig(**settings)
    with ExitStack() as stack:
        urls = [stack.enter_context(http_server(answer)) for answer in answers]
        requests = [ResponseRequest(i, prompt, 0) for i, prompt in enumerate(PROMPTS)]
        pool = RequestPool(
            requests,
            urls,
            config,
            make_body=lambda request, request_id: {"rid": request_id},
            read_answer=lambda answer, request: answer,
            patience=patience,
        )
        with pool.running() as outcomes:
            for _ in requests:
                found = outcomes.get(timeout=30)
                if isinstance(found, BaseException):
                    raise found
    return pool


def test_what_a_silent_server_is_asked_another_answers():
    pool = ask(silent, good, request_timeout_s=0.5, give_up_s=20)
    assert pool.counts.timeouts == 2 and pool.counts.lost_connections == 0


def test_a_response_is_given_up_when_that_was_said():
    with pytest.raises(EngineError, match=r"rollout.give_up_s = 2.0.*no answer within 1 s"):
        ask(silent, request_timeout_s=1.2, give_up_s=2.0)


def test_longer_responses_are_given_up_so_much_later():
    def slow(route: str, body: object) -> dict:
        time.sleep(1.0)
        return good(route, body)

    ask(slow, patience=4.0, request_timeout_s=0.5, give_up_s=0.8)
    with pytest.raises(EngineError, match=r"rollout.give_up_s = 0.8, for longer responses x 2"):
        ask(silent, patience=2.0, request_timeout_s=0.5, give_up_s=0.8)


def test_a_web_page_is_no_answer_and_not_asked_for_until_the_end():
    with pytest.raises(EngineError, match="5 of 5 answers.*no JSON"):
        ask(lambda route, body: b"<html>hello</html>", give_up_s=9000)


@pytest.mark.parametrize("status", [408, 429])
def test_a_server_that_is_busy_is_asked_again(status):
    left = iter([status, status])
    pool = ask(lambda route, body: next(left, None) or good(route, body))
    assert pool.counts.lost_connections == 2 and pool.counts.unusable_answers == 0
    assert not pool.take_failing()


def test_servers_are_told_apart_by_what_they_answer():
    """Three unusable answers in a row are held against one; they are told once."""
    left = iter([500, 500])
    pool = ask(
        lambda route, body: b"<html>hello</html>",
        lambda route, body: next(left, None) or good(route, body),
    )
    [since] = pool.take_failing().values()
    assert time.time() - 60 < since < time.time()
    assert not pool.take_failing()


def test_what_fails_before_the_first_request_is_raised_too(monkeypatch):
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(ModuleNotFoundError, match="aiohttp"):
        ask(good)


class Watched:
    """Servers that count the looks at them."""

    num_restarts = 2
    num_looks = 0

    def __init__(self) -> None:
        self.failing: dict[str, float] = {}

    def look_after(self, failing: Mapping[str, float]) -> None:
        self.num_looks += 1
        self.failing.update(failing)


def test_servers_are_looked_after_while_others_answer():
    """One response every 0.1 s, for 3 s: never 0.5 s without one."""

    def busy(route: str, body: object) -> dict:
        time.sleep(0.1)
        return good(route, body)

    one = SimpleNamespace(rank=0, size=1)
    servers = Watched()
    with http_server(busy) as url:
        engine = SglangEngine(
            SglangConfig(max_batch=1),
            load_config(["model=tiny_v3"]).model,
            SimpleNamespace(is_leader=True, replica=one, dp_cp=one),
            SimpleNamespace(decode=str, eos_id=8),
            SimpleNamespace(version=3, urls=[url], owner="mine"),
            servers,
        )
        servers.num_restarts += 1  # in a publish, say
        params = SamplingParams(8, 4, temperature=1.0, top_p=1.0, top_k=0, seed=1)
        groups = list(engine.generate(PROMPTS, params, weight_version=3))
        servers.num_restarts += 1
        held_out = list(engine.generate(PROMPTS[:1], params, weight_version=3))
        assert len(held_out) == 1
        # Of whatever was sampled since they were taken, and once.
        assert engine.take_metrics()["rollout/server_restarts"] == (2.0, 0.0)
        assert engine.take_metrics() == {}
    assert len(groups) == 4 and servers.num_looks >= 4


def test_what_is_sampled_ahead_is_given_up_only_while_servers_are_looked_after():
    """A server is lost while the trainer trains, and mended by the publish."""
    mended = []

    def lost(route: str, body: object) -> dict | int:
        return good(route, body) if mended else 500

    one = SimpleNamespace(rank=0, size=1)
    with http_server(lost) as url:
        engine = SglangEngine(
            SglangConfig(request_timeout_s=1.0, give_up_s=1.2),
            load_config(["model=tiny_v3"]).model,
            SimpleNamespace(is_leader=True, replica=one, dp_cp=one),
            SimpleNamespace(decode=str, eos_id=8),
            SimpleNamespace(version=3, urls=[url], owner="mine", publish=mended.append),
            Watched(),
        )
        params = SamplingParams(1, 4, temperature=1.0, top_p=1.0, top_k=0, seed=1)
        engine.start_ahead(PROMPTS, params)
        time.sleep(1.3)
        engine.publish(3)
        assert len(list(engine.generate(PROMPTS, params, weight_version=3))) == len(PROMPTS)
        mended.clear()
        with pytest.raises(EngineError, match="rollout.give_up_s = 1.2"):
            list(engine.generate(PROMPTS, params, weight_version=3))


def test_leaders_wait_for_each_other_and_their_late_errors_stay_their_own():
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    worker = Path(__file__).with_name("leaders_worker.py")
    done = subprocess.run(
        [sys.executable, "-m", *torchrun, str(worker)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=560,
    )
    assert done.returncode == 0, done.stderr[-4000:]
