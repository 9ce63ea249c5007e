"""Two real SGLang servers, with a real sglang-router in front of them."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from megatron_r1.config.rollout import SglangConfig
from megatron_r1.rollout.server_api import ServerError, call, checksums
from megatron_r1.rollout.server_args import choose_port
from megatron_r1.rollout.servers import pause_servers
from tests.rollout.served import MAX_GAP, needs_sglang, prompts, serve, worst_gap

pytestmark = [
    *needs_sglang,
    pytest.mark.skipif(
        importlib.util.find_spec("sglang_router") is None,
        reason="needs sglang-router: bash launch/setup_env.sh dev sglang-cpu",
    ),
]


@contextmanager
def router(urls: Sequence[str], log: Path) -> Iterator[str]:
    """A router of these servers, which takes them in turn. Yields its URL."""
    port, metrics_port = choose_port(SglangConfig(), 0), choose_port(SglangConfig(), 0)
    command = [sys.executable, "-m", "sglang_router.launch_router", "--policy", "round_robin"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--prometheus-port", str(metrics_port), "--worker-urls", *urls]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    url = f"http://127.0.0.1:{port}"
    try:
        deadline_s = time.monotonic() + 120
        # It answers before it knows its workers.
        while num_workers(url) < len(urls):
            assert process.poll() is None and time.monotonic() < deadline_s, log.read_text()
            time.sleep(0.2)
        yield url
    finally:
        process.kill()
        process.wait()


def num_workers(url: str) -> int:
    try:
        workers = call(url, "/workers", timeout_s=5)["workers"]
    except ServerError:
        return 0
    return sum(worker["is_healthy"] for worker in workers)


def num_asked(logs: Sequence[Path]) -> list[int]:
    """Samples that each server was asked for."""
    return [log.read_bytes().count(b"POST /generate") for log in logs]


def test_a_router_spreads_the_requests_and_weights_go_to_every_server(
    one_rank, tokenizer, tmp_path
):
    two = ["rollout.num_servers=2"]
    with serve(one_rank, tokenizer, tmp_path / "own", "qwen2.5", *two) as own:
        own.engine.publish(0)
        assert worst_gap(own, 0) < MAX_GAP
        servers = own.session.servers
        with router(servers.urls, tmp_path / "router.log") as url:
            behind = [f"rollout.urls=[{','.join(servers.urls)}]", f"rollout.router_url={url}"]
            behind += ["rollout.weights_by=collective", "rollout.bucket_bytes=1048576"]
            with serve(one_rank, tokenizer, tmp_path, "qwen2.5", *behind) as routed:
                before = num_asked(servers.logs)
                for version in (1, 2):
                    pause_servers(servers.urls)  # so a run leaves them that is killed amid one
                    routed.publish_changed(version, seed=version)
                    held = [checksums(each, timeout_s=30) for each in servers.urls]
                    assert held[0] == held[1]
                    assert worst_gap(routed, version) < MAX_GAP
                asked = [a - b for a, b in zip(num_asked(servers.logs), before, strict=True)]
                assert sum(asked) >= 32 and min(asked) >= 12, asked

                hits = []

                def strike(finished: int, tokens: int) -> None:
                    if not hits:
                        hits.append(os.killpg(servers.pids[0], signal.SIGKILL))

                # Once each, from the server that is left: `generate` counts the groups.
                rollouts = routed.generate(
                    prompts(6), version=2, max_response_tokens=60, on_progress=strike
                )
                assert hits and len(rollouts) == 24
                assert all(rollout.weight_version == 2 for rollout in rollouts.values())
