"""Buckets filled by several processes, against the whole Hugging Face model."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from megatron_r1.parallel.layout import Axis
from megatron_r1.weights.boxes import within
from megatron_r1.weights.buckets import OpenBucket
from megatron_r1.weights.engine_layout import Receive
from megatron_r1.weights.gather import Gatherer
from megatron_r1.weights.names import name_table
from megatron_r1.weights.plan import Plan, Quantizer
from megatron_r1.weights.plan_report import peak_bound, peak_extra_bytes
from tests.weights.live_bytes import LiveBytes
from tests.weights.test_plan import as_sent, bits, draw, hf_weights, shard

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("ranks")]

MAX_RANKS = 4


def seeds(fp8: bool, count: int) -> list[int]:
    """Of plans for engines that take whole tensors, in which ranks give each other something."""
    found = []
    for seed in range(400):
        _, plan = draw(seed)
        if plan.engine.receive is Receive.part or plan.engine.fp8 != fp8:
            continue
        moves = any(
            piece.rank != transfer.sender
            for transfer in plan.transfers
            for piece in transfer.pieces
        )
        cut = any(transfer.quantizer is Quantizer.sender for transfer in plan.transfers)
        if moves and cut == fp8 and plan.trainer.world_size <= MAX_RANKS:
            found.append(seed)
        if len(found) == count:
            return found
    raise AssertionError("too few draws")


def be_rank(rank: int, store: str, drawn: list[int]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=MAX_RANKS)
    for name, plan in map(draw, drawn):
        group = dist.new_group(range(plan.trainer.world_size))
        if rank < plan.trainer.world_size:
            fill_all(rank, group, name, plan)
    dist.destroy_process_group()


def fill_all(rank: int, group: dist.ProcessGroup, name: str, plan: Plan) -> None:
    """Fill all buckets; each sender compares its own, every rank its memory."""
    weights = hf_weights(name, plan.dtype)
    expected = as_sent(weights, plan.engine.fp8)
    stage = plan.trainer.stage_of(rank)
    parameters = {}
    for mapping in name_table(plan.trainer.model):
        holding = plan.trainer.holding(mapping)
        has_stage = stage in holding.stages
        if has_stage and holding.shard_of(rank) < holding.split.parts:
            tensors = [weights[hf] for hf in mapping.hf]
            parameters[plan.trainer.local_name(mapping, stage)] = shard(
                mapping, tensors, plan, rank
            )
    gatherer = Gatherer(plan, parameters, Axis.of(group))
    live = LiveBytes(parameters.values())
    for bucket in plan.in_turns():
        if not gatherer.takes_part(bucket):
            continue
        if bucket.num_bytes > plan.bucket_bytes:
            opened = None  # an oversized one waits until the wire is free
        with live:
            filling = gatherer.fill(bucket)
        if filling is None:
            continue
        opened = filling  # as if on the wire, while the next is filled
        del filling
        compare(opened, expected)
        if bucket.num_bytes > plan.bucket_bytes:
            opened = None
    assert peak_extra_bytes(plan)[rank] <= peak_bound(plan)
    if not plan.engine.fp8:  # the quantiser in plain PyTorch needs more while it computes
        assert live.peak <= peak_extra_bytes(plan)[rank]


def compare(opened: OpenBucket, expected: Mapping[str, torch.Tensor]) -> None:
    ((message, flat),) = opened
    for entry in message.entries:
        index = within(entry.box, tuple((0, size) for size in expected[entry.name].shape))
        assert torch.equal(bits(entry.view(flat)), bits(expected[entry.name])[index]), entry


def test_ranks_fill_buckets_bit_for_bit_and_within_the_memory_planned(tmp_path: Path):
    drawn = seeds(False, 4) + seeds(True, 4)
    mp.spawn(be_rank, (f"file://{tmp_path}/store", drawn), nprocs=MAX_RANKS)
