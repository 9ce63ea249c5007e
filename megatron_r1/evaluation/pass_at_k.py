"""Estimators over n samples of each problem."""

from __future__ import annotations

from math import comb


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that at least one of k samples is correct, without bias from the n at hand.

    1 - C(n - c, k) / C(n, k): Chen et al., arXiv:2107.03374, Eq. 1. At k = 1 it is c / n, the mean
    over samples that DeepSeek-R1 reports (supplement D.1).

    Raises:
        ValueError: k is not within 1 and num_samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"k = {k} is not within 1 and num_samples = {num_samples}")
    return 1.0 - comb(num_samples - num_correct, k) / comb(num_samples, k)
