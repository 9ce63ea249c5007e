"""Whether the machine under a rank can be trained on; asked before hours are spent on it."""

from __future__ import annotations

import os
import shutil
import socket
import time
from pathlib import Path

import psutil
import torch
import torch.distributed as dist

from megatron_r1.errors import NodeError
from megatron_r1.platform.host import Host

_WIDTH = 512
_MIN_FREE_GPU_FRAC = 0.9
_MIN_HOST_MEMORY_GIB = 1.0


def host_name() -> str:
    """Slurm's name of the node, else the machine's own."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def check_nodes(host: Host, directory: Path, *, min_free_disk_gib: float) -> list[str]:
    """Every rank looks at its own machine, and all learn what each has found.

    Returns: the host of each rank.
    Raises:
        NodeError: with every host and rank at fault, and what is wrong there.
    """
    own = (host_name(), find_problems(host, directory, min_free_disk_gib=min_free_disk_gib))
    world = dist.get_world_size()
    gathered: list[tuple[str, list[str]]] = [own] * world
    if world > 1:
        dist.all_gather_object(gathered, own)
    bad = [
        f"rank {rank} on {name}: {problem}"
        for rank, (name, problems) in enumerate(gathered)
        for problem in problems
    ]
    if bad:
        names = ",".join(sorted({name for name, problems in gathered if problems}))
        raise NodeError(
            f"the node check failed. {'. '.join(bad)}. Mend it, or leave the host out: "
            f"sbatch --exclude={names}"
        )
    _check_sum(host)
    return [name for name, _ in gathered]


def find_problems(host: Host, directory: Path, *, min_free_disk_gib: float) -> list[str]:
    """What is wrong with this rank's device, memory and disk."""
    problems = []
    try:
        if not is_matrix_product_right(host.device):
            problems.append(f"a matrix product on {host.device} came out wrong")
    except RuntimeError as error:  # CUDA's errors are
        problems.append(f"a matrix product on {host.device} failed: {error}")
    if host.is_cuda:
        free, total = torch.cuda.mem_get_info(host.device)
        if free < _MIN_FREE_GPU_FRAC * total:
            problems.append(
                f"{host.device} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB free: another "
                "process holds the rest"
            )
    available_gib = psutil.virtual_memory().available / 2**30
    if available_gib < _MIN_HOST_MEMORY_GIB:
        problems.append(f"{available_gib:.1f} GiB of host memory are free")
    free_disk_gib = shutil.disk_usage(existing_parent(directory)).free / 2**30
    if free_disk_gib < min_free_disk_gib:
        problems.append(
            f"{free_disk_gib:.1f} GiB are free at {directory}, less than "
            f"cluster.min_free_disk_gib = {min_free_disk_gib:g}"
        )
    return problems


def is_matrix_product_right(device: torch.device) -> bool:
    """Small integers, so that float32 holds every partial sum."""
    row_K = torch.arange(_WIDTH, device=device, dtype=torch.float32) % 8
    ones_KK = torch.ones(_WIDTH, _WIDTH, device=device)
    product_KK = ones_KK @ torch.diag(row_K)
    return bool((product_KK == row_K).all())


def time_matrix_product(device: torch.device) -> float:
    """Seconds that a small matrix product takes here; the best of three."""
    a_KK = torch.ones(_WIDTH, _WIDTH, device=device)
    seconds = []
    for _ in range(3):
        started_s = time.perf_counter()
        (a_KK @ a_KK)[0, 0].item()  # waits for the device
        seconds.append(time.perf_counter() - started_s)
    return min(seconds)


def existing_parent(directory: Path) -> Path:
    """The nearest directory above, or this one, that is there."""
    while not directory.exists():
        directory = directory.parent
    return directory


def _check_sum(host: Host) -> None:
    """Ranks of the whole job add up."""
    world = dist.get_world_size()
    total = torch.tensor(float(dist.get_rank()), device=host.device)
    dist.all_reduce(total)
    if total.item() != world * (world - 1) / 2:
        raise NodeError(
            f"the ranks 0 to {world - 1} add up to {total.item():g} instead of "
            f"{world * (world - 1) / 2:g}: the network or its library corrupts data"
        )
