"""Starting a server and its ending, without SGLang: ports, commands, a child that goes with us."""

from __future__ import annotations

import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import psutil
import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import ConfigError, EngineError
from megatron_r1.rollout.server_api import works
from megatron_r1.rollout.server_args import choose_port, server_command
from megatron_r1.rollout.server_check import check_server
from megatron_r1.rollout.server_process import ServerProcess
from megatron_r1.weights.hf_config import hf_config
from tests.rollout.http_double import http_server

SLEEPER = [sys.executable, "-c", "print('here', flush=True); import time; time.sleep(100)"]


def wait_for(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def arguments(config: SglangConfig, *, on_cuda: bool) -> dict[str, str | bool]:
    command = server_command(
        config,
        port=1234,
        model_dir="MODEL",
        label="7.mine",
        dtype="bfloat16",
        has_experts=True,
        on_cuda=on_cuda,
    )
    assert command[:3] == [sys.executable, "-m", "sglang.launch_server"]
    found: dict[str, str | bool] = {}
    for word in command[3:]:
        if word.startswith("--"):
            last, found[word[2:]] = word[2:], True
        else:
            found[last] = word
    return found


def test_a_servers_layout_is_its_arguments():
    config = SglangConfig(tensor=4, expert=2, attention_data=2, server_args={"mem-fraction": "0.5"})
    found = arguments(config, on_cuda=True)
    assert (found["tp-size"], found["ep-size"], found["dp-size"]) == ("4", "2", "2")
    assert found["enable-dp-attention"] is True
    assert found["weight-version"] == "7.mine" and found["dtype"] == "bfloat16"
    assert found["mem-fraction"] == "0.5"
    assert "device" not in found and "attention-backend" not in found  # SGLang's own choice
    assert arguments(config, on_cuda=False)["device"] == "cpu"


def test_a_server_whose_token_is_late_works():
    """It may come while the others are asked after."""

    def answer(route: str, body: object) -> object:
        time.sleep(0.5 if route == "/generate" else 0.2)
        return {"loads": []}

    with http_server(answer) as url:
        assert works(url, timeout_s=5.0)


def test_a_silent_server_is_asked_no_longer_than_the_limit():
    with http_server(lambda route, body: None) as url:
        started_s = time.monotonic()
        assert not works(url, timeout_s=1.0)
        assert time.monotonic() - started_s < 1.9  # twice the limit, were it each question's


@pytest.mark.parametrize(
    ("num_running", "goes_on", "does"), [(1, True, True), (0, True, False), (1, False, False)]
)
def test_a_server_that_has_no_token_for_us_works_if_it_samples_for_others(
    num_running, goes_on, does
):
    """Not one that takes orders and samples nothing: it is paused, its queue is stuck, or its
    scheduler hangs, of which SGLang's front goes on to tell the last that it knows."""
    clock = itertools.count()

    def answer(route: str, body: object) -> object:
        now = next(clock) if goes_on else 7
        load = {"num_running_reqs": num_running, "timestamp": float(now)}
        return None if route == "/generate" else {"loads": [{"num_running_reqs": 0}, load]}

    with http_server(answer) as url:
        assert works(url, timeout_s=1.0) is does
    assert not works(url, timeout_s=1.0)


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("tensor=2 expert=4", "rollout.expert = 4 does not divide rollout.tensor = 2"),
        ("router_url=http://r:1", "rollout.router_url = http://r:1 needs rollout.urls"),
        ("health_every_s=0", "rollout.health_every_s must be > 0"),
        ("port=70000", "rollout.port must be in"),
        (
            "urls=[http://a:1] tensor=4",
            "rollout.tensor = 4 has no effect on the servers of rollout.urls",
        ),
        ("urls=[http://a:1,http://b:1,http://a:1/]", "rollout.urls names http://a:1 twice"),
    ],
)
def test_impossible_settings(setting, said):
    overrides = [f"rollout.{part}" for part in setting.split()]
    with pytest.raises(ConfigError, match=said):
        load_config(["rollout=sglang", *overrides])


def test_an_argument_that_a_setting_says_is_refused():
    for argument in ("tp-size", "tensor-parallel-size"):
        with pytest.raises(ConfigError, match=f"has {argument}, which follows from rollout.tensor"):
            SglangConfig(server_args={argument: "4"})


@pytest.mark.parametrize("name", ["api-key", "admin-api-key"])
def test_a_key_that_no_request_would_bring_is_refused_and_not_shown(name):
    with pytest.raises(ConfigError, match=f"rollout.server_args has {name}") as said:
        SglangConfig(server_args={name: "hush"})
    assert "hush" not in str(said.value)


def test_a_server_of_an_older_sglang_is_refused_by_its_version():
    """It does not tell which tokens were sampled from which weights."""
    model = load_config(["model=tiny_v3"]).model
    config = SglangConfig(keyed_sampling=False)
    info = {"architectures": hf_config(model)["architectures"]}
    with http_server(lambda route, body: info) as url:
        for version in ("0.5.9", "0.5.22.post1"):
            info["version"] = version
            with pytest.raises(EngineError, match=f"{url} is SGLang {version}, .* 0.5.23 or newer"):
                check_server(url, model, config)
        for version in ("0.5.23", "0.5.24.dev3+g1a", "0.6", "0.0.0.dev0", "unknown", None):
            info["version"] = version
            check_server(url, model, config)


def test_dense_layers_that_sglang_would_overlook_are_refused():
    overrides = ["model=tiny_qwen3_moe", "model.num_dense_layers=1", "data.max_prompt_tokens=64"]
    overrides += ["rollout.max_response_tokens=16", "model.init_from=base"]
    load_config(overrides).validate(1)
    with pytest.raises(ConfigError, match="model.num_dense_layers = 1 with rollout.name = sglang"):
        load_config([*overrides, "rollout=sglang"]).validate(1)


def test_masks_for_which_sglang_has_no_room_are_refused():
    overrides = ["model=tiny_dense", "model.vocab_size=8192", "data.max_prompt_tokens=64"]
    overrides += ["rollout=sglang", "rollout.max_response_tokens=16", "rollout.sampling_masks=true"]
    overrides.append("model.init_from=base")
    load_config(overrides).validate(1)  # nothing is cut off
    overrides.append("rollout.top_p=0.9")
    with pytest.raises(ConfigError, match="of 8192 tokens more than 4096 may be left"):
        load_config(overrides).validate(1)
    load_config([*overrides, "rollout.top_k=4096"]).validate(1)
    room = "+rollout.server_args.sampling-mask-max-tokens=8192"
    load_config([*overrides, room]).validate(1)


def test_a_port_that_is_taken_is_named():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(EngineError, match=f"port {port} of this machine is taken"):
            choose_port(SglangConfig(port=port - 1), 1)
        assert choose_port(SglangConfig(), 0) != port
    assert choose_port(SglangConfig(port=port), 0) == port


def test_a_server_has_a_session_of_its_own_and_ends_frozen_or_not(tmp_path):
    server = ServerProcess(SLEEPER, environment={"A": "1"}, log=tmp_path / "logs/server.log")
    wait_for(lambda: "here" in server.output())
    assert os.getsid(server.pid) == server.pid != os.getsid(0)
    os.killpg(server.pid, signal.SIGSTOP)
    assert server.exit_code is None
    server.kill()
    assert server.exit_code == -signal.SIGKILL
    second = ServerProcess(SLEEPER, environment={}, log=tmp_path / "logs/server.log")
    wait_for(lambda: "here" in second.output())
    assert second.output() == "here\n"  # its own words, and not those before it in the log
    second.stop()
    assert second.exit_code == -signal.SIGTERM


def test_a_server_ends_with_the_process_that_started_it(tmp_path):
    code = f"""
import time
from pathlib import Path
from megatron_r1.rollout.server_process import ServerProcess
server = ServerProcess({SLEEPER!r}, environment={{}}, log=Path({str(tmp_path / "log")!r}))
while "here" not in server.output():
    time.sleep(0.02)
print(server.pid, flush=True)
time.sleep(100)
"""
    trainer = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    pid = int(trainer.stdout.readline())
    assert not is_gone(pid)
    trainer.kill()
    trainer.wait()
    wait_for(lambda: is_gone(pid))
