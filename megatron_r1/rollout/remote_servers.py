"""Rollout servers on nodes of their own, as the trainer's main rank sees them.

The nodes are another component of the same Slurm job; each runs `megatron_r1.serve`, which starts
its servers, looks after them and ends them. The two sides meet on a `ServingBoard`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from megatron_r1.config.model import ModelConfig
from megatron_r1.config.rollout import SglangConfig
from megatron_r1.errors import EngineError
from megatron_r1.rollout.server_check import check_server
from megatron_r1.rollout.servers import Weights, pause_servers, resume_servers
from megatron_r1.rollout.serving_board import NodeReport, ServingBoard
from megatron_r1.telemetry.progress import Progress

_POLL_S = 0.2
_BEAT_S = 2.0
_END_S = 60.0


class RemoteServers:
    """What `Servers` is, for servers that others start."""

    def __init__(
        self,
        board: ServingBoard,
        config: SglangConfig,
        model: ModelConfig,
        *,
        num_nodes: int,
        show_progress: bool = True,
    ) -> None:
        self._board = board
        self._config = config
        self._model = model
        self._nodes = range(num_nodes)
        self._show_progress = show_progress
        self._attempt = -1
        self._seen: set[str] = set()
        self._failing: dict[str, float] = {}
        self._closed = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="rollout-nodes", daemon=True)
        self._heart.start()

    @property
    def urls(self) -> list[str]:
        return [url for report in self._reports() for url in report.urls]

    @property
    def pids(self) -> list[int]:
        """None is this machine's."""
        return []

    @property
    def num_restarts(self) -> int:
        return sum(self._board.report_of(node).num_restarts for node in self._nodes)

    def bring_up(self, weights: Weights, at_fault: Sequence[str] = ()) -> list[str]:
        """Have every node bring up its servers. From now on these are started from `weights`.

        Args:
            at_fault: those that are started anew whatever they answer.
        Returns: URLs of those that were just started from them; the others hold what they held.
        Raises:
            EngineError: a node gave up, or said nothing for `rollout.start_timeout_s`.
        """
        self._attempt += 1
        self._board.want(weights, attempt=self._attempt, at_fault=at_fault)
        started_s = time.monotonic()

        def is_up(node: NodeReport) -> bool:
            return (node.label, node.attempt) == (weights.label, self._attempt)

        count = len(self._nodes)
        with Progress(
            count, "nodes", "waiting for rollout nodes", every_s=5.0, enabled=self._show_progress
        ) as progress:
            while (ready := self._count(is_up)) < count:
                progress.update(ready)
                if time.monotonic() - started_s > self._config.start_timeout_s:
                    raise EngineError(
                        f"{count - ready} of {count} rollout nodes did not bring up their servers "
                        f"within rollout.start_timeout_s = {self._config.start_timeout_s}. Raise "
                        f"it, or see {self._board.directory} and the nodes' logs"
                    )
                time.sleep(_POLL_S)
            progress.update(count)
        for url in set(self.urls) - self._seen:  # a network that lets nothing through shows here
            check_server(url, self._model, self._config)
        self._seen.update(self.urls)
        return [url for report in self._reports() for url in report.fresh]

    def look_after(self, failing: Mapping[str, float]) -> None:
        """The nodes do; what they cannot mend ends the run.

        Raises:
            EngineError: a node gave up.
        """
        if failing:
            self._failing.update(failing)
            self._board.complain(self._failing)
        self._reports()

    def pause(self, urls: Iterable[str]) -> None:
        self._board.hold(True)
        pause_servers(urls)

    def resume(self, urls: Iterable[str]) -> None:
        """The nodes start again what stays paused."""
        resume_servers(urls)
        self._board.hold(False)

    def release(self) -> None:
        """Nothing: they take no memory of the trainer's nodes."""

    def close(self) -> None:
        """Ask the nodes to end their servers, and wait until they have."""
        self._board.end()
        self._closed.set()
        self._heart.join()
        deadline_s = time.monotonic() + _END_S
        reports = [self._board.report_of(node) for node in self._nodes]
        while not all(report.has_ended or report.failure for report in reports):
            if time.monotonic() > deadline_s:
                return  # the job ends them with itself
            time.sleep(_POLL_S)
            reports = [self._board.report_of(node) for node in self._nodes]

    def _beat(self) -> None:
        number = 0
        while not self._closed.wait(_BEAT_S):
            number += 1
            self._board.beat(number)

    def _count(self, is_so: Callable[[NodeReport], bool]) -> int:
        return sum(is_so(report) for report in self._reports())

    def _reports(self) -> list[NodeReport]:
        reports = [self._board.report_of(node) for node in self._nodes]
        for node, report in enumerate(reports):
            if report.failure is not None:
                raise EngineError(f"rollout node {node}: {report.failure}")
        return reports
