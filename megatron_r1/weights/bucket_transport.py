"""Weights bucket by bucket, without files: by broadcasts, or through memory of one machine.

The plan says which rank sends which bucket. Ranks give their pieces to the sender (`gather.py`),
which hands the bucket to all ranks of all engines when its turn has come (`turns.py`), while it
fills the next: in a group with them (`engine_group.py`; gloo on a CPU, NCCL on GPUs), or in memory
that they read (`engine_memory.py`). Files serve only to start servers from.
"""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import TypeVar

from torch.distributed import distributed_c10d

from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import all_gather_objects, broadcast_object
from megatron_r1.parallel.layout import Axis
from megatron_r1.rollout.server_api import RefusedError, ServerError, call
from megatron_r1.rollout.servers import Weights
from megatron_r1.weights.bucket_stream import BucketStream, RankTimes, senders_of
from megatron_r1.weights.buckets import ReusedBuffers
from megatron_r1.weights.engine_group import EngineGroup
from megatron_r1.weights.engine_layout import EngineLayout
from megatron_r1.weights.engine_memory import EngineMemory, ShownNames, shared_buffer
from megatron_r1.weights.engine_requests import Engine, find_engine
from megatron_r1.weights.gather import Gatherer, Parameters
from megatron_r1.weights.plan import BUCKET_BYTES, plan_weights
from megatron_r1.weights.trainer_layout import TrainerLayout
from megatron_r1.weights.transport import SendError, WeightTransport
from megatron_r1.weights.turns import Turns

T = TypeVar("T")

_ANSWER_S = 30.0


class BucketTransport:
    """A `WeightTransport` by buckets, one sender in each pipeline stage."""

    def __init__(
        self,
        policy: Policy,
        files: WeightTransport | None,
        *,
        world: Axis,
        timeout_s: float,
        silence_s: float,
        start_files_every: int = 1,
        through_memory: bool = False,
        engine: EngineLayout | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """Plan. Every rank comes to the same by itself.

        Args:
            files: makes what servers are started from; None: this run starts none.
            world: all ranks of the trainer.
            timeout_s: for one `send`.
            silence_s: for an engine to take one bucket.
            through_memory: of this machine, on which all ranks and engines are; else by broadcasts.
            start_files_every: publishes from one use of `files` to the next; 0: the first alone.
            engine: None: engines take the weights in the trainer's numbers.
            bucket_bytes: a rank needs memory for two buckets and a tensor that is put together.
        """
        self._policy = policy
        self._files = files
        self._world = world
        self._timeout_s = timeout_s
        self._silence_s = silence_s
        self._start_files_every = start_files_every
        self._num_prepared = 0
        self._start_from: Weights | None = None
        started_s = time.monotonic()
        layout = policy.layout
        trainer = TrainerLayout(policy.config, layout.config, layout.world_size)
        self.plan = plan_weights(
            trainer, engine or EngineLayout(), dtype=policy.dtype, bucket_bytes=bucket_bytes
        )
        self._plan_s = time.monotonic() - started_s
        # Other threads of this process ask the job's store for other things.
        self._store = distributed_c10d._get_default_store().clone()
        self._name = broadcast_object(uuid.uuid4().hex[:8], world)
        self._numbers = itertools.count()
        self._through_memory = through_memory
        self._shown = ShownNames()
        self._group: EngineGroup | EngineMemory | None = None
        self._engines: list[Engine] = []

    def prepare(self, label: str) -> Weights:
        """Files to start servers from, where it is their turn."""
        if self._files is None:
            return Weights(None, label)
        every, number = self._start_files_every, self._num_prepared
        self._num_prepared += 1
        if self._start_from is None or (every and number % every == 0):
            self._start_from = self._files.prepare(label)
        return self._start_from

    def join(self, urls: Sequence[str]) -> None:
        """Have a group for each sender, of the engines as they run now."""
        if not urls:
            return
        try:
            self._join(urls, next(self._numbers))
        except SendError:
            self._leave(broken=True)
            raise

    def send(self, label: str, urls: Sequence[str]) -> Mapping[str, float]:
        """Put the weights into the engines.

        Returns: seconds of the parts, and GB (10^9 bytes) a second of the wire. Gathering goes on
            while other buckets are on the wire, and counts on the rank that took longest.
        Raises:
            SendError: names engine and bucket.
        """
        self._shown.begin()
        if not urls:  # all of them have just read files
            self._shown.end()
            return {}
        number = next(self._numbers)
        deadline_s = time.monotonic() + self._timeout_s
        times_s = {"publish/plan_s": self._plan_s}
        try:
            with _timed(times_s, "publish/begin_s"):
                self._alike(lambda: self._on_engines(_begin), only=0)
            with _timed(times_s, "publish/stream_s"):
                parts = self._stream(label, number, deadline_s)
            with _timed(times_s, "publish/finalise_s"):
                self._alike(lambda: self._on_engines(_end), only=0)
        except SendError:
            self._leave(broken=True)
            raise
        self._shown.end()
        self._plan_s = 0.0
        wire_s = sum(part.wire_s for part in parts)  # one sender at a time
        num_bytes = sum(bucket.num_bytes for bucket in self.plan.buckets)
        return times_s | {
            "publish/gather_s": max(part.gather_s for part in parts),
            "publish/quantize_s": max(part.quantize_s for part in parts),
            "publish/wire_s": wire_s,
            "publish/wire_gb_per_s": num_bytes / wire_s / 1e9,
        }

    def close(self) -> None:
        """Leave the engines' groups. Every rank calls it; the job's own groups still stand."""
        self._leave(broken=False)

    def _join(self, urls: Sequence[str], number: int) -> None:
        ask = partial(find_engine, timeout_s=min(_ANSWER_S, self._silence_s))
        engines, *_ = self._alike(lambda: [ask(url) for url in urls], only=0)
        if engines == self._engines:
            return
        self._leave(broken=True)  # who started anew knows nothing of it
        for sender in senders_of(self.plan.buckets):
            # One after another: engines that joined two in different orders would wait for ever.
            self._alike(lambda s=sender: self._make_group(engines, f"{number}_{s}"), only=sender)
        self._engines = engines

    def _make_group(self, engines: Sequence[Engine], suffix: str) -> None:
        name = f"weights_{self._name}_{suffix}"
        if self._through_memory:
            self._group = EngineMemory(name, engines, self._shown)
            return
        self._group = EngineGroup(
            name,
            engines,
            backend=self._policy.host.backend,
            timeout_s=self._timeout_s,
        )

    def _leave(self, *, broken: bool) -> None:
        if self._group is not None:
            self._group.leave(broken=broken)
        self._group, self._engines = None, []

    def _stream(self, label: str, number: int, deadline_s: float) -> list[RankTimes]:
        reused = ReusedBuffers(self.plan.slot_bytes(self._world.rank))
        stream = BucketStream(
            self.plan,
            Gatherer(
                self.plan,
                _parameters(self._policy),
                self._world,
                shared_buffer if self._through_memory else reused.take,
            ),
            self._group,
            Turns(self._store, f"{self._name}/{number}"),
            label=label,
            deadline_s=deadline_s,
            silence_s=self._silence_s,
            let_go=None if self._through_memory else reused.give_back,
        )
        return self._alike(stream.run)

    def _on_engines(self, action: Callable[[str, float], None]) -> None:
        """All at once."""

        def act(engine: Engine) -> None:
            try:
                action(engine.url, self._silence_s)
            except ServerError as error:
                raise SendError(str(error), [engine.url]) from error

        with ThreadPoolExecutor(len(self._engines)) as pool:
            for _ in pool.map(act, self._engines):
                pass

    def _alike(self, action: Callable[[], T], *, only: int | None = None) -> list[T | None]:
        """Run `action` on all ranks, or on one, and have every rank know what came of it.

        Returns: results by rank.
        Raises:
            SendError: on every rank, where one's action failed.
        """
        result, failure = None, None
        if only in (None, self._world.rank):
            try:
                result = action()
            except SendError as error:
                failure = str(error), error.urls
        found = all_gather_objects((result, failure), self._world)
        failures = [failure for _, failure in found if failure is not None]
        if failures:
            urls = sorted({url for _, urls in failures for url in urls})
            raise SendError(failures[0][0], urls)
        return [result for result, _ in found]


def _parameters(policy: Policy) -> Parameters:
    biases = (found for found in policy.named_buffers() if found[0].endswith(".expert_bias"))
    return dict(chain(policy.named_parameters(), biases))


def _begin(url: str, timeout_s: float) -> None:
    try:
        call(url, "/begin_weight_update", {}, timeout_s=timeout_s)
    except RefusedError:  # a publish that broke off has left one begun
        _end(url, timeout_s)
        call(url, "/begin_weight_update", {}, timeout_s=timeout_s)


def _end(url: str, timeout_s: float) -> None:
    call(url, "/end_weight_update", {}, timeout_s=timeout_s)


@contextmanager
def _timed(times_s: dict[str, float], name: str) -> Iterator[None]:
    started_s = time.monotonic()
    yield
    times_s[name] = time.monotonic() - started_s
