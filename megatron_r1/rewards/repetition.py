"""Repetition: how much of a response it has said before, word for word."""

from __future__ import annotations

from megatron_r1.config.reward import RepetitionConfig
from megatron_r1.types import Prompt, Rollout


def repetition(prompt: Prompt, rollout: Rollout, *, config: RepetitionConfig) -> tuple[float, str]:
    """Minus the share of n-grams of tokens that occurred before: 0 for none, towards -1 for a loop.

    After Yeo et al. (arXiv:2502.03373) section 4.2, with the share instead of a sum, so that its
    scale does not depend on the length. Tokens, because not every language has spaces.
    """
    size = config.ngram_tokens
    tokens = rollout.token_ids
    total = len(tokens) - size + 1
    if total < 1:
        return 0.0, f"fewer than {size} tokens"
    distinct = len({tokens[start : start + size] for start in range(total)})
    repeated = total - distinct
    # Not -0.0, which reads like a penalty.
    return (-repeated / total if repeated else 0.0), f"{repeated} of {total} {size}-grams repeat"
