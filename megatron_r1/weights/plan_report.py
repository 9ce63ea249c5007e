"""What a plan costs: bytes, the least possible, how even the work is, memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import pairwise
from math import prod

from megatron_r1.weights.boxes import Box, Shape, numel, slices, whole
from megatron_r1.weights.engine_layout import Receive, cuts_blocks
from megatron_r1.weights.fp8_files import is_quantized
from megatron_r1.weights.names import Form, name_table
from megatron_r1.weights.plan import Piece, Plan, Quantizer, Transfer, num_bytes
from megatron_r1.weights.trainer_layout import Holding


@dataclass(frozen=True)
class Traffic:
    """Bytes of a publish."""

    gathered: int
    """From rank to rank of the trainer."""
    sent: int
    """By the trainer to the engines; what several ranks receive alike counts once."""
    received: int
    """By all ranks of all engines."""


@dataclass(frozen=True)
class Balance:
    """Bytes of each of several ranks."""

    mean: float
    largest: int

    @property
    def ratio(self) -> float:
        """Largest over mean; 1 is even."""
        return self.largest / self.mean if self.largest else 1.0


def planned_traffic(plan: Plan) -> Traffic:
    """What the plan moves."""
    return Traffic(
        gathered=sum(gathered_bytes(plan).values()),
        sent=sum(transfer.num_bytes for transfer in plan.transfers),
        received=plan.engine.num_engines
        * sum(
            len(part.receivers) * num_bytes(part.box, transfer.dtype, quantized=transfer.quantized)
            for transfer in plan.transfers
            for part in transfer.parts
        ),
    )


def least_traffic(plan: Plan) -> Traffic:
    """What any plan between the same layouts, with the same senders, moves at least.

    Each rank of an engine receives what it needs, and no number is sent twice. What an engine takes
    only whole, or what has to be whole to be quantised, has to be on one sender, which lacks what
    it does not hold itself; a shard that can go by itself has to be on some sender.
    """
    trainer, engine = plan.trainer, plan.engine
    gathered = sent = received = 0
    for mapping in name_table(trainer.model):
        holding, dtype = trainer.holding(mapping), mapping.dtype or plan.dtype
        for name, shape in zip(mapping.hf, mapping.shapes, strict=True):
            fp8 = engine.fp8 and is_quantized(name, shape)
            cut = fp8 and cuts_blocks(holding.split, shape)
            merged = cut or engine.receive is Receive.whole
            lacking = _lacking(holding, shape, merged, plan.senders)
            gathered += sum(num_bytes(box, dtype, quantized=fp8 and not cut) for box in lacking)
            sent += num_bytes(whole(shape), dtype, quantized=fp8)
            wants = engine.wants(name, shape, trainer.model)
            for box, receivers in zip(slices(wants.split, shape), wants.receivers, strict=True):
                if numel(box):
                    received += len(receivers) * num_bytes(box, dtype, quantized=fp8)
    return Traffic(gathered, sent, received * engine.num_engines)


def sent_bytes(plan: Plan) -> dict[int, int]:
    """Of each sender, those that send nothing included."""
    sent = {rank: 0 for ranks in plan.senders for rank in ranks}
    for bucket in plan.buckets:
        sent[bucket.sender] += bucket.num_bytes
    return sent


def gathered_bytes(plan: Plan) -> dict[int, int]:
    """What each rank of the trainer gives to another one."""
    given = dict.fromkeys(range(plan.trainer.world_size), 0)
    for transfer in plan.transfers:
        for piece in transfer.pieces:
            if piece.rank != transfer.sender:
                given[piece.rank] += transfer.piece_bytes(piece)
    return given


def balance(of_ranks: Mapping[int, int]) -> Balance:
    return Balance(mean=sum(of_ranks.values()) / len(of_ranks), largest=max(of_ranks.values()))


def peak_extra_bytes(plan: Plan) -> dict[int, int]:
    """What a publish needs on each rank of the trainer beside the weights, at its fullest.

    A sender fills a bucket while the one before it is on the wire; one that is larger than
    `bucket_bytes` waits until the wire is free. Pieces of rows are received where they belong in
    the bucket. Others, and what the sender quantises, pass through a buffer, and so does what a
    giver has to copy to give it; at one time a rank does one of this, `bucket_bytes` at most.
    """
    limit = plan.bucket_bytes
    buckets: dict[int, list[int]] = defaultdict(list)
    staged: dict[int, int] = defaultdict(int)
    for bucket in plan.buckets:
        buckets[bucket.sender].append(bucket.num_bytes)
        for transfer in bucket.transfers:
            for rank, size in _staged(transfer):
                staged[rank] = max(staged[rank], min(size, limit))
    peak = {}
    for rank in range(plan.trainer.world_size):
        sizes = buckets[rank]
        together = (a + b for a, b in pairwise(sizes) if max(a, b) <= limit)
        peak[rank] = max([0, *sizes, *together]) + staged[rank]
    return peak


def peak_bound(plan: Plan) -> int:
    """Two buckets, and the largest of what is put together or goes together."""
    largest = 0
    for bucket in plan.buckets:
        if bucket.num_bytes > plan.bucket_bytes:
            largest = max(largest, bucket.num_bytes)
        for transfer in bucket.transfers:
            if len(transfer.pieces) > 1:
                largest = max(largest, num_bytes(transfer.box, transfer.dtype, quantized=False))
            if transfer.mapping.form is Form.qkv:
                sizes = (_rearranged_bytes(transfer, piece) for piece in transfer.pieces)
                largest = max(largest, *sizes)
    return 2 * plan.bucket_bytes + largest


def describe(plan: Plan) -> str:
    """A table for people."""
    planned, least = planned_traffic(plan), least_traffic(plan)
    sent, given, peak = sent_bytes(plan), gathered_bytes(plan), peak_extra_bytes(plan)
    trainer, engine = plan.trainer, plan.engine
    rows = [("", "planned", "least")]
    for name in ("gathered", "sent", "received"):
        rows.append((f"{name} GB", _gb(getattr(planned, name)), _gb(getattr(least, name))))
    by_stage = [{rank: sent[rank] for rank in ranks} for ranks in plan.senders]
    balances = {
        "GB sent by each stage": balance(dict(enumerate(sum(s.values()) for s in by_stage))),
        "GB sent by each sender": balance(sent),
        "  of the least even stage": max(map(balance, by_stage), key=lambda found: found.ratio),
        "GB given by each rank": balance(given),
    }
    rows.append(("", "mean", "max / mean"))
    rows += [(name, _gb(b.mean), f"{b.ratio:.2f}") for name, b in balances.items()]
    rows.append(("", "planned", "bound"))
    rows.append(("peak extra GB of a rank", _gb(max(peak.values())), _gb(peak_bound(plan))))
    transfers = sum(len(bucket.transfers) for bucket in plan.buckets)
    head = (
        f"{trainer.model.name}: {trainer.world_size} ranks in {trainer.num_stages} stages, "
        f"{len(sent)} senders -> {engine.num_engines} "
        f"{'engine' if engine.num_engines == 1 else 'engines'} of {engine.tensor}; "
        f"{transfers:,} transfers in {len(plan.buckets):,} buckets"
    )
    return "\n".join([head, *(f"{a:32}{b:>12}{c:>12}" for a, b, c in rows)])


def _gb(num_bytes: float) -> str:
    return f"{num_bytes / 1e9:,.2f}"


@cache
def _lacking(
    holding: Holding, shape: Shape, merged: bool, senders: tuple[tuple[int, ...], ...]
) -> tuple[Box, ...]:
    """Boxes of a tensor that have to move to a sender."""
    shards = [(i, box) for i, box in enumerate(slices(holding.split, shape)) if numel(box)]
    by_sender = [
        tuple(box for i, box in shards if rank not in holding.ranks(stage, i))
        for stage in holding.stages
        for rank in senders[stage]
    ]
    if merged:
        return min(by_sender, key=lambda boxes: sum(map(numel, boxes)))
    return tuple(box for _, box in shards if all(box in boxes for boxes in by_sender))


def _staged(transfer: Transfer) -> Iterator[tuple[int, int]]:
    """Ranks that need a buffer for a transfer, and how many bytes."""
    moved = [piece for piece in transfer.pieces if piece.rank != transfer.sender]
    if moved and transfer.quantizer is Quantizer.sender:
        yield transfer.sender, num_bytes(transfer.box, transfer.dtype, quantized=False)
    for piece in moved:
        if piece.box[1:] != transfer.box[1:]:  # columns, or columns of rows
            yield transfer.sender, transfer.piece_bytes(piece)
        if transfer.quantizer is Quantizer.holders:
            yield piece.rank, transfer.piece_bytes(piece)
    if transfer.mapping.form is Form.qkv:
        for piece in transfer.pieces:
            yield piece.rank, _rearranged_bytes(transfer, piece)


def _rearranged_bytes(transfer: Transfer, piece: Piece) -> int:
    """Of a shard with queries, keys and values by key group, which come apart as a copy."""
    whole_rows = transfer.mapping.shapes[transfer.number][0]
    (start, stop), *_ = piece.box
    share = Fraction(stop - start, whole_rows)
    return int(prod(transfer.mapping.megatron_shape) * share) * transfer.dtype.itemsize
