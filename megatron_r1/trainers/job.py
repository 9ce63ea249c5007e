"""What a loop tells the job around it, and asks of it: signs of life, speed, whether to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist

from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.errors import StoppedEarly
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.platform.host import Host
from megatron_r1.platform.node_check import time_matrix_product
from megatron_r1.signals import signal_to_stop
from megatron_r1.telemetry.stragglers import slowest
from megatron_r1.telemetry.watchdog import Watchdog


class Job:
    """The ranks of one start, seen from a loop. All of them make the same calls."""

    def __init__(
        self,
        host: Host,
        *,
        watchdog: Watchdog | None = None,
        hosts: Sequence[str] = ("localhost",),
        stragglers_every_steps: int = 0,
    ) -> None:
        """hosts: of each rank; straggler reports need them."""
        self._host = host
        self._watchdog = watchdog
        self._hosts = hosts
        self._every_steps = stragglers_every_steps
        self._own_s = 0.0

    def step_made(self, step: int, own_s: float = 0.0) -> None:
        """An update is behind every rank.

        Args:
            own_s: seconds that this rank worked for it without waiting for others.
        """
        if self._watchdog is not None:
            self._watchdog.enter("step")
        self._own_s += own_s
        if self._every_steps and step % self._every_steps == 0 and dist.get_world_size() > 1:
            self._report_stragglers(step)
            self._own_s = 0.0

    def between_loops(self) -> None:
        """What comes now, such as an evaluation, has the time of a set-up."""
        if self._watchdog is not None:
            self._watchdog.enter("setup")

    @contextmanager
    def checkpointing(self) -> Iterator[None]:
        """What is in the block has the time of a checkpoint."""
        if self._watchdog is None:
            yield
            return
        with self._watchdog.within("checkpoint"):
            yield

    def signal_to_stop(self) -> int:
        """A signal that asked any rank to stop; 0 for none. The same on every rank."""
        number = torch.tensor(signal_to_stop(), device=self._host.device)
        if dist.get_world_size() > 1:
            dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number.item())

    def _report_stragglers(self, step: int) -> None:
        own = [self._own_s, time_matrix_product(self._host.device)]
        gathered: list[list[float]] = [own] * dist.get_world_size()
        dist.all_gather_object(gathered, own)
        if dist.get_rank() == 0:
            rollouts, products = zip(*gathered, strict=True)
            for what, seconds in (("rollouts", rollouts), ("a matrix product", products)):
                print(f"step {step}: slowest at {slowest(what, seconds, self._hosts).describe()}")


def stop_if_asked(
    job: Job,
    store: CheckpointStore,
    state: LoopState,
    save: Callable[[LoopState], object],
) -> None:
    """Leave the loop when any rank was asked to stop, with a checkpoint of `state`.

    Args:
        save: writes that checkpoint into the store.
    Raises:
        StoppedEarly: on every rank.
    """
    number = job.signal_to_stop()
    if not number:
        return
    with job.checkpointing():
        store.poll(wait=True)
        if state.step > 0 and not on_main_rank(lambda: store.has(state.step)):
            save(state)
            store.poll(wait=True)
    raise StoppedEarly(f"{signal.Signals(number).name} after step {state.step}")
