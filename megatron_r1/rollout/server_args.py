"""How an SGLang server is started: its command line and environment, out of the configuration."""

from __future__ import annotations

import importlib.util
import socket
import sys
from pathlib import Path

from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.platform import sglang_cpu

_CPU_TOKENS_PER_RESPONSE = 128
"""Room in the cache of a server on a CPU, for each response that decodes side by side. Where more
is needed some wait; server_args can say more. On a GPU SGLang takes the memory that there is."""


def server_command(
    config: SglangConfig,
    *,
    port: int,
    model_dir: Path,
    label: str,
    dtype: str,
    has_experts: bool,
    on_cuda: bool,
) -> list[str]:
    """The command of one server on this machine.

    Args:
        label: name of the weights in `model_dir`.
        dtype: such as ``float32``.
    """
    args: dict[str, object] = {
        "model-path": model_dir,
        "host": config.host,
        "port": port,
        "dtype": dtype,
        "weight-version": label,
        "tp-size": config.tensor,
        "ep-size": config.expert,
        "skip-tokenizer-init": True,  # token ids go in and come out
        "skip-server-warmup": True,
        "load-snapshot-publish-interval": 1,  # tells of every batch, see `server_api.works`
        "sleep-on-idle": True,  # else its scheduler spins on a core while the trainer trains
        "enable-deterministic-inference": config.keyed_sampling,
        "enable-return-routed-experts": config.routed_experts and has_experts,
    }
    if config.attention_data > 1:
        args |= {"dp-size": config.attention_data, "enable-dp-attention": True}
    if not on_cuda:
        args |= sglang_cpu.SERVER_ARGS
        args["max-total-tokens"] = config.max_batch * _CPU_TOKENS_PER_RESPONSE
    args |= {name: value or True for name, value in config.server_args.items()}
    command = [sys.executable, "-m", "sglang.launch_server"]
    for name, value in args.items():
        if value is not False:
            command += [f"--{name}"] if value is True else [f"--{name}", str(value)]
    return command


def server_environment(config: SglangConfig, *, on_cuda: bool) -> dict[str, str]:
    """Variables of a server beside those of this process."""
    # Under torchrun a server would look for its store at the launcher's, and wait for ever.
    own = {"HF_HUB_OFFLINE": "1", "TORCHELASTIC_USE_AGENT_STORE": "False"}
    if config.keyed_sampling:  # then nobody's look at /health may draw a token, see `works`
        own["SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION"] = "false"
    return own if on_cuda else own | sglang_cpu.environment(config.tensor)


def check_can_serve(config: SglangConfig, *, on_cuda: bool) -> None:
    """SGLang and the client that asks it are there, and do what is asked on this machine.

    Raises:
        EngineError: with the command that installs them, or with what to ask instead.
    """
    missing = [name for name in ("sglang", "aiohttp") if importlib.util.find_spec(name) is None]
    if missing:
        how = "pip install -e '.[sglang]'" if on_cuda else "bash launch/setup_env.sh sglang-cpu"
        raise EngineError(
            f"rollout=sglang needs {' and '.join(missing)}, not installed here. Run `{how}`, or "
            "use rollout=inprocess"
        )
    if config.fp8 and not on_cuda and not config.urls:
        raise EngineError(
            "rollout.fp8 = true: on a CPU SGLang multiplies no FP8 matrices without AMX. Set it to "
            "false, or let rollout.urls name servers on GPUs"
        )


def choose_port(config: SglangConfig, index: int) -> int:
    """The port of server `index`: the one that is asked for, or a free one.

    Raises:
        EngineError: another process has it.
    """
    port = config.port + index if config.port else 0
    with socket.socket() as probe:
        # As servers do, or a port would count as taken for a minute after its last server.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((config.host, port))
        except OSError as error:
            raise EngineError(
                f"rollout.port = {config.port}: port {port} of this machine is taken by another "
                "process. Choose another, or rollout.port=0 for free ones"
            ) from error
        return probe.getsockname()[1]
