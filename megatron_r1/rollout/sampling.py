"""Drawing the next token, keyed so that a draw does not depend on what else is in the batch."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from torch import Tensor

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def stream_key(seed: int, prompt_draw: int, sample: int) -> int:
    """A 64-bit name for the random stream of one response."""
    digest = hashlib.sha256(f"{seed}/{prompt_draw}/{sample}".encode()).digest()
    return int.from_bytes(digest[:8], "little")


def uniforms(keys_N: np.ndarray, positions_N: np.ndarray) -> np.ndarray:
    """The number at a position of each stream, uniform in [0, 1); float64.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014) as a counter-based generator: its state after n
    steps is key + n x golden ratio, so any position is reached at once.

    Args:
        keys_N: uint64.
        positions_N: non-negative integers.
    """
    with np.errstate(over="ignore"):
        z = keys_N + (positions_N.astype(np.uint64) + np.uint64(1)) * _GOLDEN
        z = (z ^ (z >> np.uint64(30))) * _MIX_1
        z = (z ^ (z >> np.uint64(27))) * _MIX_2
        z = z ^ (z >> np.uint64(31))
    return (z >> np.uint64(11)).astype(np.float64) * 2.0**-53


def sample_tokens(
    logits_NV: Tensor, uniforms_N: Tensor, *, temperature: float, top_p: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Draw one token a row by inverting the cumulative distribution at a given uniform number.

    Returns: tokens_N, int64, and logprobs_N in nats, float32: under the temperature, before top-p
        and top-k cut anything off, which is what the trainer's own log-probabilities are compared
        with.
    """
    logprobs_NV = torch.log_softmax(logits_NV.float() / temperature, dim=-1)
    probs_NV = logprobs_NV.exp()
    if top_k > 0 or top_p < 1.0:
        probs_NV = _keep_likeliest(probs_NV, top_p=top_p, top_k=top_k)
    cumulative_NV = probs_NV.cumsum(dim=-1)
    # Strictly below the total, so that rounding never points past the last possible token.
    targets_N1 = (uniforms_N.to(probs_NV) * cumulative_NV[:, -1])[:, None]
    tokens_N1 = torch.searchsorted(cumulative_NV, targets_N1, right=True)
    last_possible_N1 = probs_NV.shape[-1] - 1 - (probs_NV.flip(-1) > 0).int().argmax(-1)[:, None]
    tokens_N1 = torch.minimum(tokens_N1, last_possible_N1)
    return tokens_N1.squeeze(1), logprobs_NV.gather(1, tokens_N1).squeeze(1)


def _keep_likeliest(probs_NV: Tensor, *, top_p: float, top_k: int) -> Tensor:
    """Zero all but the top_k tokens and those of the smallest set with top_p of the mass."""
    sorted_NV, order_NV = probs_NV.sort(dim=-1, descending=True, stable=True)
    mass_before_NV = sorted_NV.cumsum(dim=-1) - sorted_NV
    drop_NV = mass_before_NV >= top_p
    if top_k > 0:
        drop_NV[:, top_k:] = True
    return probs_NV.scatter(1, order_NV, sorted_NV.masked_fill(drop_NV, 0.0))
