"""One rank's part of a publish: fill a bucket while the one before it is on the wire."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from torch import Tensor

from megatron_r1.weights.buckets import OpenBucket
from megatron_r1.weights.engine_group import EngineGroup
from megatron_r1.weights.engine_memory import EngineMemory
from megatron_r1.weights.gather import Gatherer
from megatron_r1.weights.plan import Bucket, Plan
from megatron_r1.weights.transport import SendError
from megatron_r1.weights.turns import Turns


@dataclass
class RankTimes:
    """Seconds of one rank."""

    gather_s: float = 0.0
    """In which it filled buckets, its own and others', without `quantize_s`."""
    quantize_s: float = 0.0
    wire_s: float = 0.0
    """From asking the engines to load a bucket until all have."""


class BucketStream:
    """Sends one publish's buckets, as far as they concern this rank.

    When sending fails, here or elsewhere, ranks go on to give and to take pieces, so that none
    waits for another; they are not sent.
    """

    def __init__(
        self,
        plan: Plan,
        gatherer: Gatherer,
        group: EngineGroup | EngineMemory | None,
        turns: Turns,
        *,
        label: str,
        deadline_s: float,
        silence_s: float,
        let_go: Callable[[Tensor], None] | None = None,
    ) -> None:
        """
        Args:
            group: this rank's, where it is a sender.
            deadline_s: of `time.monotonic`, for all buckets.
            silence_s: for one.
            let_go: is given the buffer of each bucket that was sent, on the wire's thread.
        """
        self._buckets = plan.in_turns()
        self._bucket_bytes = plan.bucket_bytes
        self._gatherer = gatherer
        self._group = group
        self._turns = turns
        self._label = label
        self._deadline_s = deadline_s
        self._silence_s = silence_s
        self._let_go = let_go
        self._failure: SendError | None = None
        self._times = RankTimes()

    def run(self) -> RankTimes:
        """Go through all buckets.

        Raises:
            SendError: one was not sent; on this rank, and on every one whose turn comes later.
        """
        on_wire: deque[tuple[int, Future[None]]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="weight-wire") as wire:
            for turn, bucket in enumerate(self._buckets):
                if not self._gatherer.takes_part(bucket):
                    continue
                is_mine = self._group is not None and bucket.sender == self._gatherer.rank
                if is_mine:
                    self._make_room(bucket, on_wire)
                opened = self._fill(bucket)
                if opened is not None:
                    sent = wire.submit(self._take_turn, turn, [opened])
                    on_wire.append((bucket.num_bytes, sent))
                del opened  # the wire has it
            for _, sent in on_wire:
                sent.result()
        if self._failure is not None:
            raise self._failure
        self._times.quantize_s = self._gatherer.quantize_s
        self._times.gather_s -= self._gatherer.quantize_s
        return self._times

    def _make_room(self, bucket: Bucket, on_wire: deque[tuple[int, Future[None]]]) -> None:
        """Leave one bucket on the wire; none where that or this one is larger than a bucket should
        be."""
        while on_wire:
            size, sent = on_wire[0]
            fits = max(size, bucket.num_bytes) <= self._bucket_bytes
            if len(on_wire) == 1 and fits:
                return
            sent.result()
            on_wire.popleft()

    def _fill(self, bucket: Bucket) -> OpenBucket | None:
        started_s = time.monotonic()
        opened = self._gatherer.fill(bucket)
        self._times.gather_s += time.monotonic() - started_s
        return opened

    def _take_turn(self, turn: int, handed: list[OpenBucket]) -> None:
        """On the wire's thread: wait for the turn, send, and hand on, whatever happens. The
        bucket is taken out of its list: the pool keeps arguments a little longer than that."""
        opened = handed.pop()
        try:
            before = self._buckets[turn - 1].sender if turn else self._gatherer.rank
            if before != self._gatherer.rank:
                self._turns.wait(turn - 1, deadline_s=self._deadline_s)
            if self._failure is None:
                self._send(turn, opened)
        except SendError as error:
            # Another object: this one's traceback would keep the bucket.
            self._failure = self._failure or SendError(str(error), error.urls)
        except BaseException as error:
            self._failure = SendError(f"a bug on rank {self._gatherer.rank}: {error!r}")
            raise
        finally:
            if turn + 1 < len(self._buckets):
                after = self._buckets[turn + 1].sender
                if after != self._gatherer.rank:
                    self._turns.end(turn, self._failure and str(self._failure))

    def _send(self, turn: int, opened: OpenBucket) -> None:
        last = len(self._buckets) - 1
        ((message, flat),) = opened  # engines take every tensor whole
        started_s = time.monotonic()
        self._group.send(
            f"bucket {turn + 1} of {last + 1} (from {message.entries[0].name})",
            message,
            flat,
            label=self._label if turn == last else None,
            deadline_s=min(self._deadline_s, started_s + self._silence_s),
        )
        self._times.wire_s += time.monotonic() - started_s
        if self._let_go is not None:
            self._let_go(flat)


def senders_of(buckets: Sequence[Bucket]) -> list[int]:
    """Ranks that send anything."""
    return sorted({bucket.sender for bucket in buckets})
