"""Which trainer rank sends what of the weights to the engines, from metadata alone.

A sender fills one bucket after another and sends each to the engines, while other senders do the
same; by default each pipeline stage has one. What a sender does not hold it gets from ranks of its
own stage. A tensor is put together on the way where the engines want it whole, or where the ranks'
shards would cut an FP8 block; otherwise each shard goes as it is, from a rank that holds it.

`plan_weights` decides; `plan_report.py` counts; a transport carries it out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from itertools import chain, groupby, zip_longest

import torch

from megatron_r1.errors import ConfigError
from megatron_r1.weights.boxes import Box, Shape, Split, numel, overlap, shape_of, slices, whole
from megatron_r1.weights.engine_layout import EngineLayout, Ranks, Receive, Wants, cuts_blocks
from megatron_r1.weights.fp8_files import is_quantized
from megatron_r1.weights.names import NameMapping, name_table
from megatron_r1.weights.trainer_layout import Holding, TrainerLayout
from r1_kernels.fp8_blocks import BLOCK, num_blocks

BUCKET_BYTES = 2**29
"""Half a GiB: the memory that a publish takes of each sender is two of them and a tensor."""


class Quantizer(Enum):
    """Who makes FP8 blocks of a tensor."""

    nobody = "nobody"
    """It is sent as it is."""
    holders = "holders"
    """Each rank quantises what it gives, before it gives it; no shard cuts a block."""
    sender = "sender"
    """The sender, of the tensor that it has put together: shards do cut blocks."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What one rank of the trainer gives: a box of the Hugging Face tensor."""

    rank: int
    box: Box


@dataclass(frozen=True, slots=True)
class Part:
    """What some ranks of every engine get."""

    box: Box
    receivers: Ranks


@dataclass(frozen=True, slots=True)
class Transfer:
    """A box of a Hugging Face tensor on its way: pieces -> sender -> parts."""

    mapping: NameMapping
    number: int
    """Which of the tensors that `mapping` names."""
    box: Box
    dtype: torch.dtype
    """Before it is quantised."""
    quantizer: Quantizer
    sender: int
    pieces: tuple[Piece, ...]
    """They cover the box once. One from the sender itself does not move."""
    parts: tuple[Part, ...]
    """They cover the box once, however many ranks receive each."""

    @property
    def name(self) -> str:
        return self.mapping.hf[self.number]

    @property
    def quantized(self) -> bool:
        return self.quantizer is not Quantizer.nobody

    @property
    def num_bytes(self) -> int:
        """Of the box as it is sent, with its scales."""
        return num_bytes(self.box, self.dtype, quantized=self.quantized)

    def piece_bytes(self, piece: Piece) -> int:
        """Of a piece as it is given."""
        return num_bytes(piece.box, self.dtype, quantized=self.quantizer is Quantizer.holders)


@dataclass(frozen=True, slots=True)
class Bucket:
    """Transfers that a sender sends together."""

    sender: int
    transfers: tuple[Transfer, ...]

    @property
    def num_bytes(self) -> int:
        return sum(transfer.num_bytes for transfer in self.transfers)


@dataclass(frozen=True)
class Plan:
    """How the weights get from a trainer to its engines."""

    trainer: TrainerLayout
    engine: EngineLayout
    dtype: torch.dtype
    bucket_bytes: int
    senders: tuple[Ranks, ...]
    """Of each pipeline stage."""
    buckets: tuple[Bucket, ...]
    """Each sender's in the order in which it sends them. None is larger than `bucket_bytes`, but
    for one whose tensors have to go together."""

    @property
    def transfers(self) -> Iterator[Transfer]:
        return chain.from_iterable(bucket.transfers for bucket in self.buckets)

    def slot_bytes(self, rank: int) -> int:
        """The largest bucket of a sender, but for those that go alone; 0 where there is none."""
        sizes = (bucket.num_bytes for bucket in self.buckets if bucket.sender == rank)
        return max((size for size in sizes if size <= self.bucket_bytes), default=0)

    def in_turns(self) -> list[Bucket]:
        """All buckets, each sender's first, then each one's second, and so on.

        An engine takes one at a time (SGLang's scheduler does), and a broadcast to several engines
        ends when all have taken it: engines that took two of them in different orders would wait
        for each other for ever. In this order the other senders fill theirs meanwhile.
        """
        by_sender = (tuple(found) for _, found in groupby(self.buckets, lambda b: b.sender))
        turns = chain.from_iterable(zip_longest(*by_sender))
        return [bucket for bucket in turns if bucket is not None]


def plan_weights(
    trainer: TrainerLayout,
    engine: EngineLayout,
    *,
    dtype: torch.dtype = torch.bfloat16,
    bucket_bytes: int = BUCKET_BYTES,
    senders_per_stage: int | None = 1,
) -> Plan:
    """Plan a publish. Every rank comes to the same plan by itself.

    Args:
        dtype: the trainer's; but for what the name table fixes, and FP8, the engine's, too.
        senders_per_stage: how many ranks of a pipeline stage have a group with the engines. None
            is all of them, and then nothing moves that a rank could send itself.
    Raises:
        ConfigError: the engine's ranks cannot share a tensor out, or a stage has fewer ranks.
    """
    senders = _senders(trainer, senders_per_stage)
    cargos = list(_cargos(trainer, engine, dtype, bucket_bytes))
    planned = _assign(cargos, senders)
    return Plan(trainer, engine, dtype, bucket_bytes, senders, _pack(planned, bucket_bytes))


def num_bytes(box: Box, dtype: torch.dtype, *, quantized: bool) -> int:
    """Of a box on the wire; quantised: codes, and float32 scales."""
    if not quantized:
        return numel(box) * dtype.itemsize
    rows, columns = num_blocks(shape_of(box))
    return numel(box) + rows * columns * torch.float32.itemsize


_Shards = tuple[tuple[int, Box], ...]
"""Number of each shard of a parameter, and what it has of a box."""


@dataclass(frozen=True, slots=True)
class _Item:
    """A transfer without its ranks."""

    mapping: NameMapping
    number: int
    holding: Holding
    box: Box
    shards: _Shards
    dtype: torch.dtype
    quantizer: Quantizer
    parts: tuple[Part, ...]

    @property
    def num_bytes(self) -> int:
        return num_bytes(self.box, self.dtype, quantized=self.quantizer is not Quantizer.nobody)

    def held(self, rank: int, stage: int) -> int:
        """How many numbers of the box a rank has."""
        shards = self.shards
        return sum(numel(box) for i, box in shards if rank in self.holding.ranks(stage, i))


_Cargo = tuple[_Item, ...]
"""What has one sender and one bucket."""


def _cargos(
    trainer: TrainerLayout, engine: EngineLayout, dtype: torch.dtype, bucket_bytes: int
) -> Iterator[_Cargo]:
    """What moves as one, in the order of the name table."""
    for together in _loaded_together(name_table(trainer.model), engine):
        items = (
            item
            for mapping in together
            for item in _items(mapping, trainer, engine, mapping.dtype or dtype, bucket_bytes)
        )
        if len(together) > 1:
            yield tuple(items)
        else:
            yield from ((item,) for item in items)


def _items(
    mapping: NameMapping,
    trainer: TrainerLayout,
    engine: EngineLayout,
    dtype: torch.dtype,
    bucket_bytes: int,
) -> Iterator[_Item]:
    """The transfers of a parameter."""
    holding = trainer.holding(mapping)
    for number, (name, shape) in enumerate(zip(mapping.hf, mapping.shapes, strict=True)):
        wants = engine.wants(name, shape, trainer.model)
        fp8 = engine.fp8 and is_quantized(name, shape)
        merged, quantizer = _treatment(holding.split, shape, engine.receive, fp8)
        for box, shards in _boxes(holding.split, shape, merged, bucket_bytes // dtype.itemsize):
            parts = _parts(wants, shape, box)
            yield _Item(mapping, number, holding, box, shards, dtype, quantizer, parts)


def _loaded_together(
    table: Sequence[NameMapping], engine: EngineLayout
) -> Iterable[list[NameMapping]]:
    """Parameters, and where one load has to bring several, these as one.

    SGLang fuses the down-projections of queries and of keys and values, and drops one of them that
    comes without the other (deepseek_weight_loader.py, `cached_a_proj`).
    """
    groups: dict[str, list[NameMapping]] = {}
    for mapping in table:
        key = mapping.megatron
        if engine.receive is Receive.whole:
            partner = key.replace(".linear_kv_down_proj.", ".linear_q_down_proj.")
            key = partner if partner in groups else key
        groups.setdefault(key, []).append(mapping)
    return groups.values()


@cache
def _treatment(split: Split, shape: Shape, receive: Receive, fp8: bool) -> tuple[bool, Quantizer]:
    """Whether a tensor is put together, and who quantises it."""
    cut = fp8 and cuts_blocks(split, shape)
    quantizer = Quantizer.nobody
    if fp8:
        quantizer = Quantizer.sender if cut else Quantizer.holders
    return receive is Receive.whole or cut, quantizer


@cache
def _boxes(
    split: Split, shape: Shape, merged: bool, bucket_numbers: int
) -> tuple[tuple[Box, _Shards], ...]:
    """What is sent by itself, and the shards that it consists of.

    A shard that can go by itself and is larger than a bucket is cut into rows of blocks.
    """
    shards = tuple((i, box) for i, box in enumerate(slices(split, shape)) if numel(box))
    if merged:
        return ((whole(shape), shards),)
    found = []
    for i, box in shards:
        (start, stop), *columns = box
        step = max(bucket_numbers // numel(((0, 1), *columns)) // BLOCK, 1) * BLOCK
        for row in range(start, stop, step):
            piece = ((row, min(row + step, stop)), *columns)
            found.append((piece, ((i, piece),)))
    return tuple(found)


@cache
def _parts(wants: Wants, shape: Shape, box: Box) -> tuple[Part, ...]:
    wanted = zip(slices(wants.split, shape), wants.receivers, strict=True)
    found = ((overlap(part, box), receivers) for part, receivers in wanted)
    return tuple(Part(part, receivers) for part, receivers in found if part)


def _senders(trainer: TrainerLayout, per_stage: int | None) -> tuple[Ranks, ...]:
    """Ranks of each stage, evenly spaced, so that they are on as many machines as can be."""
    size = trainer.stage_size
    count = size if per_stage is None else per_stage
    if not 1 <= count <= size:
        raise ConfigError(
            f"{count} senders in each pipeline stage, and a stage has {size} ranks. Choose 1 to "
            f"{size}"
        )
    return tuple(
        tuple(stage * size + i * size // count for i in range(count))
        for stage in range(trainer.num_stages)
    )


def _assign(cargos: Sequence[_Cargo], senders: Sequence[Ranks]) -> list[list[Transfer]]:
    """The transfers of each cargo: who sends, and who gives what the sender lacks.

    Each time it is the one with the least to do so far, of those senders that lack least and of
    those givers that have the shard. What few could send comes first, then the largest, so that the
    rest evens out what these have made uneven.
    """
    stage_of = {rank: stage for stage, ranks in enumerate(senders) for rank in ranks}
    sent, given = dict.fromkeys(stage_of, 0), defaultdict[int, int](int)
    sizes = [sum(item.num_bytes for item in cargo) for cargo in cargos]
    candidates = _candidates(cargos, senders)
    planned: list[list[Transfer]] = [[] for _ in cargos]

    def pieces(item: _Item, sender: int) -> Iterator[Piece]:
        for shard, box in item.shards:
            ranks = item.holding.ranks(stage_of[sender], shard)
            if sender in ranks:
                yield Piece(sender, box)
            else:
                rank = min(ranks, key=lambda rank: (given[rank], abs(rank - sender)))
                given[rank] += numel(box)
                yield Piece(rank, box)

    for i in sorted(range(len(cargos)), key=lambda i: (len(candidates[i]), -sizes[i])):
        sender = min(candidates[i], key=lambda rank: (sent[rank], rank))
        sent[sender] += sizes[i]
        planned[i] = [
            Transfer(
                mapping=item.mapping,
                number=item.number,
                box=item.box,
                dtype=item.dtype,
                quantizer=item.quantizer,
                sender=sender,
                pieces=tuple(pieces(item, sender)),
                parts=item.parts,
            )
            for item in cargos[i]
        ]
    return planned


def _candidates(cargos: Iterable[_Cargo], senders: Sequence[Ranks]) -> list[Ranks]:
    """For each cargo the senders of its stages that hold most of it."""
    known: dict[tuple[tuple[Holding, _Shards], ...], Ranks] = {}  # layers are much alike
    found = []
    for cargo in cargos:
        key = tuple((item.holding, item.shards) for item in cargo)
        if key not in known:
            held = {
                rank: sum(item.held(rank, stage) for item in cargo)
                for stage in cargo[0].holding.stages
                for rank in senders[stage]
            }
            most = max(held.values())
            known[key] = tuple(rank for rank, numbers in held.items() if numbers == most)
        found.append(known[key])
    return found


def _pack(planned: Iterable[Sequence[Transfer]], bucket_bytes: int) -> tuple[Bucket, ...]:
    """Each sender's transfers in buckets, those of one cargo in one bucket."""
    buckets: dict[int, list[list[Transfer]]] = {}
    filled: dict[int, int] = {}
    for transfers in planned:
        sender, size = transfers[0].sender, sum(transfer.num_bytes for transfer in transfers)
        if sender not in buckets or filled[sender] + size > bucket_bytes:
            buckets.setdefault(sender, []).append([])
            filled[sender] = 0
        buckets[sender][-1] += transfers
        filled[sender] += size
    return tuple(
        Bucket(sender, tuple(transfers))
        for sender in sorted(buckets)
        for transfers in buckets[sender]
    )
