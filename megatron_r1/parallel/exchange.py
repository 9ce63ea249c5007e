"""Python objects and small facts between ranks."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from megatron_r1.errors import UserError
from megatron_r1.parallel.layout import Axis

T = TypeVar("T")


def exchange(outgoing: Sequence[Sequence[Any]], axis: Axis, device: torch.device) -> list[Any]:
    """Send `outgoing[r]` to rank r of the axis; return what the others sent here, by sender.

    No rank holds more than what it sends and receives.
    """
    if axis.size == 1:
        return list(outgoing[0])
    payloads = [pickle.dumps(list(items)) for items in outgoing]
    sent = torch.tensor([len(p) for p in payloads], device=device)
    received = torch.empty_like(sent)
    dist.all_to_all_single(received, sent, group=axis.group)
    sizes_in, sizes_out = received.tolist(), sent.tolist()
    data_out = torch.frombuffer(bytearray(b"".join(payloads)), dtype=torch.uint8).to(device)
    data_in = torch.empty(sum(sizes_in), dtype=torch.uint8, device=device)
    dist.all_to_all_single(data_in, data_out, sizes_in, sizes_out, group=axis.group)
    return [
        item
        for part in data_in.cpu().split(sizes_in)
        for item in pickle.loads(part.numpy().tobytes())
    ]


def all_gather_objects(value: T, axis: Axis) -> list[T]:
    """What every rank of the axis holds, in rank order. For small values."""
    if axis.size == 1:
        return [value]
    gathered: list[Any] = [None] * axis.size
    dist.all_gather_object(gathered, value, group=axis.group)
    return gathered


def broadcast_object(value: T | None, axis: Axis, *, source: int = 0) -> T:
    """The value of one rank of the axis, on all of its ranks."""
    box: list[Any] = [value]
    if axis.size > 1:
        source = dist.get_global_rank(axis.group, source)
        dist.broadcast_object_list(box, src=source, group=axis.group)
    return box[0]


def main_rank_answers() -> bool:
    """Whether rank 0 of the job still runs, for one that waits for something else than a rank.

    Where something else than rank 0 keeps the job's store, such as torchrun's agent, that will end
    this process too.
    """
    if dist.get_world_size() == 1:
        return True
    try:
        distributed_c10d._get_default_store().check(["anything"])
    except RuntimeError:
        return False
    return True


def post(name: str, text: str) -> None:
    """Leave a text for rank 0, which may read it when it likes; no other rank takes part."""
    store = distributed_c10d._get_default_store()
    store.set(f"{name}/{store.add(name, 1)}", text)


def posted(name: str) -> list[str]:
    """On rank 0: what ranks have posted under this name since it was last asked for."""
    store = distributed_c10d._get_default_store()
    num_read, num_posted = store.add(f"{name}/read", 0), store.add(name, 0)
    store.add(f"{name}/read", num_posted - num_read)
    numbers = range(num_read + 1, num_posted + 1)
    return [store.get(f"{name}/{number}").decode() for number in numbers]


def sum_pairs(pairs: dict[str, tuple[float, float]], axis: Axis) -> dict[str, float]:
    """(numerator, denominator) summed over the axis, then divided; denominator 0 marks a sum."""
    totals: dict[str, list[float]] = {}
    for part in all_gather_objects(pairs, axis):
        for name, (numerator, denominator) in part.items():
            total = totals.setdefault(name, [0.0, 0.0])
            total[0] += numerator
            total[1] += denominator
    return {
        name: numerator / denominator if denominator else numerator
        for name, (numerator, denominator) in totals.items()
    }


def on_every_rank(action: Callable[[], T]) -> T:
    """Run `action`, in which ranks do not talk to each other, on all of them.

    What the user must mend on one of them is raised on all alike; a bug, on its own rank alone.
    """
    failure: UserError | None = None
    try:
        result = action()
    except UserError as error:
        failure = error
    failures: list[UserError | None] = [failure]
    if dist.get_world_size() > 1:
        failures = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
    for error in failures:
        if error is not None:
            raise error
    return result


def on_main_rank(action: Callable[[], T]) -> T:
    """Run `action` on rank 0 of the job and give its result to all ranks.

    An error there is raised on every rank alike, so that none waits for the others.
    """
    box: list[Any] = [None, None]
    failure: Exception | None = None
    if dist.get_rank() == 0:
        try:
            box[0] = action()
        except Exception as error:
            failure = error
            known = isinstance(error, UserError | OSError)  # others may not survive pickling
            box[1] = error if known else RuntimeError(f"rank 0: {error!r}")
    if dist.get_world_size() > 1:
        dist.broadcast_object_list(box, src=0)
    if failure is not None:
        raise failure
    if box[1] is not None:
        raise box[1]
    return box[0]
