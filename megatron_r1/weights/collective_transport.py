"""Weights over collective groups of trainer and engines: gloo on a CPU, NCCL on GPUs.

The plan says which rank sends which bucket. Ranks give their pieces to the sender (`gather.py`),
which broadcasts the bucket to all ranks of all engines (`engine_group.py`) when its turn has come
(`turns.py`), while it fills the next. Files serve only to start servers from.
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
from pathlib import Path
from typing import TypeVar

from torch.distributed import distributed_c10d

from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import all_gather_objects, broadcast_object
from megatron_r1.parallel.layout import Axis
from megatron_r1.rollout.server_api import NoAnswerError, RefusedError, call
from megatron_r1.weights.bucket_stream import BucketStream, RankTimes, senders_of
from megatron_r1.weights.engine_group import Engine, EngineGroup, find_engine
from megatron_r1.weights.engine_layout import EngineLayout
from megatron_r1.weights.gather import Gatherer, Parameters
from megatron_r1.weights.plan import BUCKET_BYTES, plan_weights
from megatron_r1.weights.trainer_layout import TrainerLayout
from megatron_r1.weights.transport import SendError, WeightTransport
from megatron_r1.weights.turns import Turns

T = TypeVar("T")

_ANSWER_S = 30.0


class CollectiveTransport:
    """A `WeightTransport` by broadcasts, one sender in each pipeline stage."""

    def __init__(
        self,
        policy: Policy,
        files: WeightTransport,
        *,
        world: Axis,
        timeout_s: float,
        engine: EngineLayout | None = None,
        bucket_bytes: int = BUCKET_BYTES,
    ) -> None:
        """Plan. Every rank comes to the same by itself.

        Args:
            files: makes what servers are started from.
            world: all ranks of the trainer.
            timeout_s: for one `send`.
            engine: None: engines take the weights in the trainer's numbers.
            bucket_bytes: a rank needs memory for two buckets and a tensor that is put together.
        """
        self._policy = policy
        self._files = files
        self._world = world
        self._timeout_s = timeout_s
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
        self._group: EngineGroup | None = None
        self._engines: list[Engine] = []

    def prepare(self, label: str) -> Path:
        return self._files.prepare(label)

    def send(self, label: str, urls: Sequence[str]) -> Mapping[str, float]:
        """Put the weights into the engines.

        Returns: seconds of the parts, and GB (10^9 bytes) a second of the wire. Gathering goes on
            while other buckets are on the wire, and counts on the rank that took longest.
        Raises:
            SendError: names engine and bucket.
        """
        if not urls:
            return {}
        number = next(self._numbers)
        deadline_s = time.monotonic() + self._timeout_s
        times_s = {"publish/plan_s": self._plan_s}
        try:
            with _timed(times_s, "publish/join_s"):
                self._join(urls, number)
            with _timed(times_s, "publish/begin_s"):
                self._alike(lambda: self._on_engines(_begin, deadline_s), only=0)
            with _timed(times_s, "publish/stream_s"):
                parts = self._stream(label, number, deadline_s)
            with _timed(times_s, "publish/finalise_s"):
                self._alike(lambda: self._on_engines(_end, deadline_s), only=0)
        except SendError:
            self._leave(broken=True)
            raise
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
        """Have a group for each sender, of the engines as they run now."""
        ask = partial(find_engine, timeout_s=min(_ANSWER_S, self._timeout_s))
        engines, *_ = self._alike(lambda: [ask(url) for url in urls], only=0)
        if engines == self._engines:
            return
        self._leave(broken=True)  # who started anew knows nothing of it
        for sender in senders_of(self.plan.buckets):
            # One after another: engines that joined two in different orders would wait for ever.
            self._alike(lambda s=sender: self._make_group(engines, f"{number}_{s}"), only=sender)
        self._engines = engines

    def _make_group(self, engines: Sequence[Engine], suffix: str) -> None:
        self._group = EngineGroup(
            f"weights_{self._name}_{suffix}",
            engines,
            backend=self._policy.host.backend,
            timeout_s=self._timeout_s,
        )

    def _leave(self, *, broken: bool) -> None:
        if self._group is not None:
            self._group.leave(broken=broken)
        self._group, self._engines = None, []

    def _stream(self, label: str, number: int, deadline_s: float) -> list[RankTimes]:
        stream = BucketStream(
            self.plan,
            Gatherer(self.plan, _parameters(self._policy), self._world),
            self._group,
            Turns(self._store, f"{self._name}/{number}"),
            label=label,
            deadline_s=deadline_s,
        )
        return self._alike(stream.run)

    def _on_engines(self, action: Callable[[str, float], None], deadline_s: float) -> None:
        """All at once."""
        timeout_s = max(deadline_s - time.monotonic(), 0.1)
        with ThreadPoolExecutor(len(self._engines)) as pool:
            for _ in pool.map(lambda engine: action(engine.url, timeout_s), self._engines):
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
            except (SendError, NoAnswerError, RefusedError) as error:
                failure = str(error)
        found = all_gather_objects((result, failure), self._world)
        for _, failure in found:
            if failure is not None:
                raise SendError(failure)
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
