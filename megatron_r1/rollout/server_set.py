"""Rollout servers as the trainer's main rank sees them, wherever they run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from megatron_r1.rollout.servers import Weights


class ServerSet(Protocol):
    """`Servers` of this machine or found by URL, or `RemoteServers` on nodes of their own."""

    @property
    def urls(self) -> list[str]: ...

    @property
    def num_restarts(self) -> int:
        """Of all servers, since the beginning."""
        ...

    def bring_up(self, weights: Weights, at_fault: Sequence[str] = ()) -> list[str]:
        """Have every server run and answer. From now on servers are started from `weights`.

        Args:
            at_fault: those that are started anew whatever they answer.
        Returns: URLs of those that were just started from them; the others hold what they held.
        Raises:
            EngineError: a server does not start, does not answer, or serves another model.
        """
        ...

    def look_after(self, failing: Mapping[str, float]) -> None:
        """Called now and then while servers sample, without waiting for what it sets going.

        Args:
            failing: URLs of servers that answer what nobody can use, with the time since when, in
                seconds since the epoch.
        Raises:
            EngineError: servers that are lost could not be had again.
        """
        ...

    def pause(self, urls: Iterable[str]) -> None:
        """Interrupt what is being sampled; it goes on after `resume`, from where it was."""
        ...

    def resume(self, urls: Iterable[str]) -> None:
        """Go on sampling. A server of this job that does not is started again.

        Raises:
            EngineError: another's does not.
        """
        ...

    def release(self) -> None:
        """Give back the memory that servers take on this machine, until the next `bring_up`."""
        ...

    def close(self) -> None:
        """End what this job started."""
        ...
