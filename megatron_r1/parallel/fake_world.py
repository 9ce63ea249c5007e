"""A world of any size with one real process: groups have ranks and sizes, and nothing is sent."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.testing._internal.distributed.fake_pg import FakeStore

from megatron_r1.parallel.layout import leave_layout


@contextmanager
def fake_world(*, rank: int, world_size: int) -> Iterator[None]:
    """Be `rank` of a world whose other ranks do not exist.

    What a layout of hundreds of GPUs gives one of them can be built and counted, on the meta
    device; a collective returns at once, and its result means nothing. The process must not have
    joined a real job.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=rank, world_size=world_size)
    try:
        yield
    finally:
        leave_layout()
        dist.destroy_process_group()
