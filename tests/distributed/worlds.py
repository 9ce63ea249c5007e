"""Worlds of ranks, forked one after another from a process that has imported everything.

Importing torch and Megatron-Core takes longer than most of what a rank does in a test; forked, the
ranks of all worlds share it, and its memory.

    python worlds.py    reads {"module": NAME, "world_size": W, "arguments": [...]}, a line each,
                        writes {"failure": TEXT} for each

calls NAME's `main` with the arguments in W processes, as torchrun would have it.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

USED = ("checkpoint.hf_load", "checkpoint.store", "config.load", "models.policy")
USED += ("rollout.inprocess", "trainers.megatron_step", "trainers.reward_parts")
"""Modules that take long to import."""


class Worlds:
    """The tests' side: one process for all worlds."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None

    def run(self, module: str, world_size: int, *arguments: Any) -> str:
        """What went wrong, if anything: the ends of what the ranks printed.

        Given up in the middle, by a time limit, it ends its ranks: no later test reads their
        answer. Skips the test where ranks would have to share a GPU, which NCCL refuses.
        """
        skip_without_a_gpu_each(world_size)
        self._process = self._process or _start()
        request = {"module": module, "world_size": world_size, "arguments": arguments}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
            assert answer, f"no ranks any more: exit code {self._process.wait()}"
        except BaseException:
            self.close()
            raise
        return json.loads(answer)["failure"]

    def close(self) -> None:
        """Its ranks end with it."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


def skip_without_a_gpu_each(world_size: int) -> None:
    import pytest
    import torch

    num_gpus = torch.cuda.device_count()
    if 0 < num_gpus < world_size:
        pytest.skip(f"{world_size} ranks need as many GPUs, and {num_gpus} are here")


def _start() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(Path(__file__))],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve() -> None:
    """Until the tests end."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import_all()
    for line in sys.stdin:
        answers.write(json.dumps({"failure": run_world(**json.loads(line))}) + "\n")
        answers.flush()


def import_all() -> None:
    """Not where CUDA is: a process that has seen it cannot be forked."""
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import torch

    if torch.cuda.is_available():
        return
    from megatron_r1.platform.host import prepare

    prepare()
    for name in USED:
        importlib.import_module(f"megatron_r1.{name}")


def run_world(module: str, world_size: int, arguments: list[Any]) -> str:
    """Fork the ranks and wait for them; when one fails, the others are killed."""
    from megatron_r1.signals import children_end_with_us

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile("w+") as output:
        ranks = set()
        for rank in range(world_size):
            with children_end_with_us():
                child = os.fork()
            if child == 0:
                os.dup2(output.fileno(), 1)
                os.dup2(output.fileno(), 2)
                be_rank(rank, world_size, port, module, arguments)
            ranks.add(child)
        failed = False
        while ranks:
            child, status = os.wait()
            if child not in ranks:
                continue
            ranks.remove(child)
            if status and not failed:
                failed = True
                for other in ranks:
                    os.kill(other, signal.SIGKILL)
        output.seek(0)
        return (output.read()[-8000:] or "a rank was killed") if failed else ""


def be_rank(rank: int, world_size: int, port: int, module: str, arguments: list[Any]) -> None:
    if world_size > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        os.environ |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    code = 1
    try:
        importlib.import_module(module).main(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()
