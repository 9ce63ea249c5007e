"""A group of one sender and all ranks of all engines, in which it broadcasts buckets."""

from __future__ import annotations

import socket
import time
from collections.abc import Sequence
from concurrent.futures import wait
from datetime import timedelta
from urllib.parse import urlsplit

import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup, distributed_c10d

from megatron_r1.weights.buckets import Message
from megatron_r1.weights.engine_requests import Engine, EngineRequests, collect
from megatron_r1.weights.transport import SendError

_JOIN_S = 60.0
"""For all engines to join a group, once they have been asked to."""
_LEAVE_S = 5.0
_GRACE_S = 5.0
"""The collective's own limit comes so much after ours: NCCL's would end the process."""


class EngineGroup:
    """This process is rank 0; the engines' ranks follow one another."""

    def __init__(
        self, name: str, engines: Sequence[Engine], *, backend: str, timeout_s: float
    ) -> None:
        """Join, and have the engines join.

        Args:
            name: no other group's, now or before, of the same engines.
            backend: ``gloo`` or ``nccl``.
            timeout_s: the longest that a broadcast may be asked to take.
        Raises:
            SendError: an engine does not join.
        """
        self._name = name
        self._engines = engines
        self._requests = EngineRequests(engines, name)
        self._group: ProcessGroup | None = None
        size = 1 + sum(engine.num_ranks for engine in engines)
        limit = timedelta(seconds=_JOIN_S)
        # Its port is a free one; the engines connect to it.
        store = dist.TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False, timeout=limit)
        bodies, first = {}, 1
        for engine in engines:
            bodies[engine] = {
                "master_address": _address_seen_from(engine.url),
                "master_port": store.port,
                "rank_offset": first,
                "world_size": size,
                "group_name": name,
                "backend": backend,
            }
            first += engine.num_ranks
        deadline_s = time.monotonic() + _JOIN_S
        answers = self._requests.ask("/init_weights_update_group", bodies, deadline_s)
        try:
            self._group = _join(name, store, size, backend)
            self._group.set_timeout(timedelta(seconds=timeout_s + _GRACE_S))
            collect(answers, f"{name} was not joined", deadline_s)
        except (SendError, RuntimeError) as error:
            self.leave(broken=True)
            failed = [a for a in answers if not a.done() or a.exception()]
            words = [str(a.exception()) for a in failed if a.done()]
            urls = [answers[a].url for a in failed]
            raise SendError("; ".join([*words, str(error)]), urls) from error

    def send(
        self, what: str, message: Message, flat: Tensor, *, label: str | None, deadline_s: float
    ) -> None:
        """Have every engine load a bucket.

        Args:
            what: names it in an error.
            label: name of the weights, with the last bucket of a publish alone: engines say that
                they hold them, and forget what they computed under older ones.
            deadline_s: of `time.monotonic`.
        Raises:
            SendError: an engine did not take it. The group cannot be used any more.
        """
        request = {
            **message.describe(),
            "group_name": self._name,
            "load_format": "flattened_bucket",
            "weight_version": label,
            "flush_cache": label is not None,
        }
        bodies = {engine: request for engine in self._engines}
        answers = self._requests.ask("/update_weights_from_distributed", bodies, deadline_s)
        options = dist.BroadcastOptions()
        options.rootRank = options.rootTensor = 0
        options.timeout = timedelta(seconds=max(deadline_s - time.monotonic(), 0) + _GRACE_S)
        try:
            work = self._group.broadcast([flat], options)
            collect(answers, what, deadline_s)
            work.wait(options.timeout)
        except RuntimeError as error:
            raise SendError(f"{what}: {error}") from error

    def leave(self, *, broken: bool = False) -> None:
        """End the group, here and in the engines that still know it."""
        bodies = {engine: {"group_name": self._name} for engine in self._engines}
        limit_s = time.monotonic() + _LEAVE_S
        answers = self._requests.ask("/destroy_weights_update_group", bodies, limit_s)
        if self._group is not None:
            if broken:
                self._group.abort()
            dist.destroy_process_group(self._group)
            self._group = None
        wait(answers)
        self._requests.close()


def _join(name: str, store: dist.Store, size: int, backend: str) -> ProcessGroup:
    """A group outside of this job's world, made as SGLang makes its end of it."""
    group, _ = distributed_c10d._new_process_group_helper(
        size,
        0,
        [],
        dist.Backend(backend),
        dist.PrefixStore(name, store),
        group_name=name,
        timeout=timedelta(seconds=_JOIN_S),
    )
    distributed_c10d._world.pg_group_ranks[group] = {rank: rank for rank in range(size)}
    return group


def _address_seen_from(url: str) -> str:
    """Of this machine, where whoever listens at `url` reaches it."""
    target = urlsplit(url)
    try:
        with socket.create_connection((target.hostname, target.port), timeout=_JOIN_S) as found:
            return found.getsockname()[0]
    except OSError as error:
        raise SendError(f"{url}: {error}", [url]) from error
