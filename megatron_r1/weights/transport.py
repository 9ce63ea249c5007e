"""How weights get from the trainer's ranks into rollout servers: the interface, and the errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol


class SendError(Exception):
    """A server did not take the weights; raised on every rank alike. The publish is repeated."""


class WeightTransport(Protocol):
    """Moves the policy's weights. Every rank of the job calls every method, in step."""

    def prepare(self, label: str) -> Path:
        """Make ready what can be while the servers still sample.

        Returns: a Hugging Face directory of the model that a server can be started from. The
            weights in it are this label's, or are sent afterwards.
        """
        ...

    def send(self, label: str, urls: Sequence[str]) -> Mapping[str, float]:
        """Put the weights into the servers, which are paused, under that label.

        Returns: metrics of how that went, the same on all ranks.
        Raises:
            SendError: what the servers hold is not known.
        """
        ...
