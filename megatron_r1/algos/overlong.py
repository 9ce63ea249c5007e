"""DAPO's soft punishment of responses that come near the limit."""

from __future__ import annotations


def overlong_penalty(num_tokens: int, *, max_response_tokens: int, cache_tokens: int) -> float:
    """0 up to max - cache tokens, then falling to -1 at max: DAPO (arXiv:2503.14476) Eq. 13."""
    excess = num_tokens - (max_response_tokens - cache_tokens)
    return -min(1.0, max(0.0, excess / cache_tokens))
