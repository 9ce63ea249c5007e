"""A new version of the policy in every rollout server: bring up, pause, send, check, resume.

A publish that fails half-way is repeated from the start, and ends only when all servers have been
seen with the same weights under the same label.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

from megatron_r1.config.rollout import SglangConfig, WeightsBy
from megatron_r1.errors import EngineError
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.rollout.server_api import ServerError
from megatron_r1.rollout.server_set import ServerSet
from megatron_r1.rollout.servers import Weights
from megatron_r1.weights.labels import make_label
from megatron_r1.weights.publish_check import check_labels, check_weights
from megatron_r1.weights.transport import SendError, WeightTransport

_TRIES = 3


class Publisher:
    """Publishes one policy. Every rank of the job has one, and calls it in step."""

    def __init__(
        self, transport: WeightTransport, servers: ServerSet | None, config: SglangConfig
    ) -> None:
        """`servers` are the main rank's; None on the others."""
        self._transport = transport
        self._servers = servers
        self._config = config
        self._num_publishes = 0
        # The first publish is what servers were started from, as files; the second goes by buckets.
        self._next_check = min(1, config.check_weights_every - 1)
        self._times_s: dict[str, float] = {}
        self.owner: str = on_main_rank(lambda: uuid.uuid4().hex[:8])
        """Tells this policy's weights from those of any other, of whatever run."""
        self.version: int | None = None
        """What the servers hold; None before the first publish."""
        self.urls: list[str] = []

    def publish(self, version: int) -> Mapping[str, float]:
        """Put the policy as it is now into all servers. Returns the times of the parts.

        Servers sample again when all of them hold it: a send that failed is repeated from the
        start while they wait. One that fails twice running is the fault of the servers that it
        failed at, which are started anew where they are this job's.

        Raises:
            EngineError: a server does not start, or will not take the weights. It is left paused.
        """
        label = make_label(version, self.owner)
        self._times_s = {}
        self.version = None
        with self._timed("prepare"):
            weights = self._transport.prepare(label)
        paused_s, blamed = None, ()
        for attempt in range(1, _TRIES + 1):
            try:
                with self._timed("bring_up"):
                    fresh, self.urls = self._on_servers(partial(_bring_up, weights, blamed))
                if weights.label != label:
                    fresh = []  # what they were started from is older
                due = [url for url in self.urls if url not in fresh]
                with self._timed("join"):
                    self._transport.join(due)
                paused_s = paused_s or time.monotonic()
                self._deliver(label, due, weights)
                break
            except SendError as error:
                if attempt == _TRIES:
                    raise EngineError(
                        f"the weights of version {version} could not be published in {_TRIES} "
                        f"attempts; the last time: {error}. Servers that are not this job's are "
                        "left paused, since what they hold is not known"
                    ) from error
                blamed = error.urls if attempt > 1 else ()
        self._on_servers(lambda servers: servers.resume(self.urls))
        self._times_s["publish/pause_s"] = time.monotonic() - paused_s
        self.version = version
        self._num_publishes += 1
        return {**self._times_s, "publish/attempts": float(attempt)}

    def close(self) -> None:
        self._transport.close()

    def _deliver(self, label: str, due: Sequence[str], weights: Weights) -> None:
        """Once through the servers that hold something older, or nothing that is known.

        Raises:
            SendError: on every rank alike; some may hold the new weights, some the old.
        """
        self._on_servers(lambda servers: servers.pause(due))
        with self._timed("send"):
            for name, value in self._transport.send(label, due).items():
                self._times_s[name] = value
        with self._timed("check"):
            self._on_servers(lambda _: self._check(label, due, weights))

    def _check(self, label: str, due: Sequence[str], weights: Weights) -> None:
        """All servers say that they hold the label, and hold what was sent."""
        config = self._config
        check_labels(self.urls, label, timeout_s=config.health_timeout_s)
        every = config.check_weights_every
        if every == 0 or self._num_publishes < self._next_check:
            return
        by_files = config.weights_by is WeightsBy.directory
        # Servers that are not this job's may share no file system with it.
        files = weights if weights.label == label and not config.urls else None
        if files is None and config.start_files_every and not config.urls:
            return  # the next files are compared with
        check_weights(
            self.urls,
            by_buckets=[] if by_files else due,
            files=files,
            may_be_unlike=bool(config.urls),
            timeout_s=config.publish_timeout_s,
            silence_s=config.health_timeout_s,
        )
        self._next_check = self._num_publishes + every

    def _on_servers(self, action):
        """Run on the main rank; what servers fail to do is a `SendError` on every rank."""

        def attempt():
            try:
                return action(self._servers), None
            except ServerError as error:
                return None, (str(error), error.urls)

        result, failure = on_main_rank(attempt)
        if failure is not None:
            raise SendError(*failure)
        return result

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        started_s = time.monotonic()
        yield
        name = f"publish/{part}_s"
        self._times_s[name] = self._times_s.get(name, 0.0) + time.monotonic() - started_s


def _bring_up(
    weights: Weights, at_fault: Sequence[str], servers: ServerSet
) -> tuple[list[str], list[str]]:
    """URLs of the servers that were started from `weights`, and of all."""
    return servers.bring_up(weights, at_fault), servers.urls
