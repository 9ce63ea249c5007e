"""Overlong: a soft edge before the limit of a response's length."""

from __future__ import annotations

from megatron_r1.config.reward import OverlongConfig
from megatron_r1.types import Prompt, Rollout


def overlong(prompt: Prompt, rollout: Rollout, *, config: OverlongConfig) -> tuple[float, str]:
    """0 up to `max_response_tokens - buffer_tokens`, then a line down to -1 at the limit.

    DAPO (arXiv:2503.14476) Eq. 13.
    """
    tokens = len(rollout.token_ids)
    free = config.max_response_tokens - config.buffer_tokens
    excess = tokens - free
    if excess <= 0:
        return 0.0, f"{tokens} tokens, {free} are free"
    return -min(1.0, excess / config.buffer_tokens), f"{tokens} tokens, {excess} beyond {free}"
