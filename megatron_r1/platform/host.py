"""The machine under the program: its device, its collective backend, and their start and end."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class Host:
    """What this process computes on."""

    device: torch.device
    backend: str
    """Collective backend: ``nccl`` or ``gloo``."""

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


@cache
def prepare() -> Host:
    """Choose the platform once for the process; on a CPU, give Megatron-Core what it takes for
    granted.

    Call it before Megatron-Core is imported. On a CUDA machine nothing is replaced.
    """
    # Dozens of notices of deprecation, on every rank, in which a run's own words would be lost.
    warnings.filterwarnings("ignore", module=r"(megatron|torch|transformers)\b")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
        return Host(device=device, backend="nccl")
    from megatron_r1.platform import cpu

    cpu.make_megatron_run_without_cuda()
    return Host(device=torch.device("cpu"), backend="gloo")


def start_process_group(host: Host, *, timeout_minutes: float) -> bool:
    """Join the job that torchrun's variables describe; alone, be a job of one rank.

    A process joins once: the job's store has the addresses of the first time, and ranks that came
    back would look for each other there. Returns False where it has joined before.
    """
    if dist.is_initialized():
        return False
    timeout = timedelta(minutes=timeout_minutes)
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group(host.backend, timeout=timeout)
    else:
        store = dist.HashStore()
        dist.init_process_group(host.backend, store=store, rank=0, world_size=1, timeout=timeout)
    return True


def stop_process_group() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
