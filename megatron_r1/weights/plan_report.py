"""What a plan costs: bytes, the least possible, how even the work is, memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache

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

    A sender fills a bucket while the one before it is on the wire, in two buffers of the size of
    its largest; a bucket that is larger than `bucket_bytes` waits until the wire is free, and goes
    alone. Pieces of rows are received where they belong in the bucket; what passes through memory
    of its own does so transfer by transfer. What a quantiser in plain PyTorch needs while it
    computes is not counted; the kernel (`r1_kernels/triton/fp8_blocks.py`) allocates nothing.
    """
    two = {rank: 2 * plan.slot_bytes(rank) for rank in range(plan.trainer.world_size)}
    peak = dict(two)
    for bucket in plan.buckets:
        peak[bucket.sender] = max(peak[bucket.sender], bucket.num_bytes)
        for transfer in bucket.transfers:
            for rank, size in _staged(plan, transfer):
                buckets = two[rank]
                if rank == bucket.sender and bucket.num_bytes > plan.bucket_bytes:
                    buckets = bucket.num_bytes
                peak[rank] = max(peak[rank], buckets + size)
    return peak


def peak_bound(plan: Plan) -> int:
    """Two buckets, or one that goes alone, and the largest tensor that is put together, or taken
    out of another; twice that, where it is made into codes."""
    buckets, largest = 2 * plan.bucket_bytes, 0
    for bucket in plan.buckets:
        buckets = max(buckets, bucket.num_bytes)
        for transfer in bucket.transfers:
            size = max(_taken_out_bytes(plan, transfer, piece) for piece in transfer.pieces)
            if len(transfer.pieces) > 1:
                size = num_bytes(transfer.box, transfer.dtype, quantized=False)
            largest = max(largest, 2 * size if transfer.quantized else size)
    return buckets + largest


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


def _staged(plan: Plan, transfer: Transfer) -> Iterator[tuple[int, int]]:
    """Ranks that need memory for a transfer beside the bucket, and how many bytes."""
    moved = [piece for piece in transfer.pieces if piece.rank != transfer.sender]
    columns = (piece for piece in moved if piece.box[1:] != transfer.box[1:])
    buffer = max(map(transfer.piece_bytes, columns), default=0)
    if transfer.quantizer is Quantizer.sender:  # put together, then made into codes
        whole_box = num_bytes(transfer.box, transfer.dtype, quantized=False)
        yield transfer.sender, whole_box + max(buffer, transfer.num_bytes)
    elif buffer:
        yield transfer.sender, buffer
    for piece in transfer.pieces:
        codes = transfer.piece_bytes(piece) if transfer.quantizer is Quantizer.holders else 0
        taken_out = _taken_out_bytes(plan, transfer, piece)
        if codes or taken_out:
            yield piece.rank, codes + taken_out


def _taken_out_bytes(plan: Plan, transfer: Transfer, piece: Piece) -> int:
    """Of queries, keys or values, which are copied out of the shard in which they lie."""
    if transfer.mapping.form is not Form.qkv:
        return 0
    holding = plan.trainer.holding(transfer.mapping)
    parts = slices(holding.split, transfer.mapping.shapes[transfer.number])
    return numel(parts[holding.shard_of(piece.rank)]) * transfer.dtype.itemsize
