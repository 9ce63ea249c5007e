"""What a rollout engine is to the rest of the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from megatron_r1.errors import ConfigError
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

    def publish(self, version: int) -> Mapping[str, float]:
        """Have the next responses sampled by the policy as it is now, after `version` updates.

        Every rank of the job calls it. Returns metrics of how that went, the same on all.
        """
        ...

    def start_ahead(self, prompts: Sequence[Prompt], params: SamplingParams) -> None:
        """Begin to sample what the next `generate` with these prompts will yield, and return.

        Every rank of the job calls it, with the prompts of its replica.
        """
        ...

    def take_metrics(self) -> Mapping[str, tuple[float, float]]:
        """What went wrong and was mended while responses were sampled, since this was last asked:
        sums of this replica's, as ``(sum, 0)``."""
        ...

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


def check_context(prompts: Sequence[Prompt], params: SamplingParams, max_positions: int) -> None:
    """Refuse prompts whose longest response would leave the model's context."""
    for prompt in prompts:
        if len(prompt.token_ids) + params.max_response_tokens > max_positions:
            raise ConfigError(
                f"prompt {prompt.id} has {len(prompt.token_ids)} tokens; with "
                f"rollout.max_response_tokens = {params.max_response_tokens} that exceeds "
                f"model.max_positions = {max_positions}. Lower rollout.max_response_tokens or "
                "data.max_prompt_tokens"
            )
