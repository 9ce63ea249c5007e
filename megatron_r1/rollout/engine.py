"""What a rollout engine is to the rest of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_r1.types import Prompt, RolloutGroup

OnProgress = Callable[[int, int], None]
"""Called as decoding goes on, with this replica's finished responses and drawn tokens so far."""


@dataclass(frozen=True)
class SamplingParams:
    """How responses are drawn."""

    num_samples: int
    """G, responses to each prompt."""
    max_response_tokens: int
    temperature: float
    top_p: float
    top_k: int
    """0 keeps the whole vocabulary."""
    seed: int


class RolloutEngine(Protocol):
    """Samples responses under the policy's newest published weights."""

    def generate(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams,
        *,
        weight_version: int,
        on_progress: OnProgress | None = None,
    ) -> Iterator[RolloutGroup]:
        """Yield each group as its last response ends, in no particular order."""
        ...
