"""How weights get from the trainer's ranks into rollout servers: the interface, and the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from megatron_r1.rollout.server_api import ServerError
from megatron_r1.rollout.servers import Weights


class SendError(ServerError):
    """A server did not take the weights; raised on every rank alike. The publish is repeated."""


class WeightTransport(Protocol):
    """Moves the policy's weights. Every rank of the job calls every method, in step."""

    def prepare(self, label: str) -> Weights:
        """Make ready what can be while the servers still sample.

        Returns: what a server can be started from, under that label or an older one.
        """
        ...

    def join(self, urls: Sequence[str]) -> None:
        """Get connected with these servers, which still sample, where that needs doing.

        Raises:
            SendError: with none of them.
        """
        ...

    def send(self, label: str, urls: Sequence[str]) -> Mapping[str, float]:
        """Put the weights into the servers last joined, which are paused, under that label.

        Returns: metrics of how that went, the same on all ranks.
        Raises:
            SendError: what the servers hold is not known.
        """
        ...

    def close(self) -> None:
        """Give back what connects it with the servers. Ranks do not wait for each other."""
        ...
