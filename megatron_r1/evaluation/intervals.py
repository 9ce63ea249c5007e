"""Confidence intervals over problems.

Samples of one problem are not independent of each other, so the problem is the unit: each gives one
value (the share of its samples that are right, pass@k, a vote), and the interval says how far the
mean could move with other problems of the same kind. Of values between 0 and 1 the normal interval
of their mean is taken, which is the cluster-robust one of Miller, "Adding error bars to evals"
(arXiv:2411.00640) section 2.2; it needs no random numbers, where a bootstrap over problems would
give the same to its own noise. Where every value is 0 or 1 (one sample, a vote, pass@n of n
samples) it is Wilson's (1927), which does not shrink to nothing when all are right. The normal
interval is kept from that in a way of our own: its half-width is at least that of Wilson's for n
equal outcomes, z^2 / 2(n + z^2), and below that its centre moves towards 1/2, as Wilson's does, the
more the more alike the values are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist, fmean, stdev


@dataclass(frozen=True)
class Estimate:
    """A mean over problems, with its interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def describe(self) -> str:
        """``0.812 (0.742-0.881)``."""
        return f"{self.value:.3f} ({self.low:.3f}-{self.high:.3f})"


def estimate(values: Sequence[float], *, confidence: float = 0.95) -> Estimate:
    """Mean of one value in [0, 1] for each problem.

    One problem whose value is neither 0 nor 1 tells nothing of others: its interval is 0 to 1.

    Raises:
        ValueError: there are no values.
    """
    if not values:
        raise ValueError("no problem, so nothing to estimate")
    if all(value in (0, 1) for value in values):
        return wilson(round(sum(values)), len(values), confidence=confidence)
    value = fmean(values)
    if len(values) == 1:
        return Estimate(value, 0.0, 1.0)
    z, n = _z(confidence), len(values)
    half, least = z * stdev(values) / math.sqrt(n), z * z / (2 * (n + z * z))
    centre = value
    if half < least:
        # 0 where the two agree, 1 where all values are equal: no step between the two intervals.
        alike = 1 - (half / least) ** 2
        centre, half = value + alike * 2 * least * (0.5 - value), least
    return Estimate(value, max(0.0, min(value, centre - half)), min(1.0, max(value, centre + half)))


def wilson(num_right: int, num_problems: int, *, confidence: float = 0.95) -> Estimate:
    """Share of yes-or-no outcomes: Wilson's score interval."""
    z, n = _z(confidence), num_problems
    share = num_right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # At the ends one bound is the share itself, but for rounding.
    return Estimate(share, max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def difference(
    first: Sequence[float], second: Sequence[float], *, confidence: float = 0.95
) -> Estimate:
    """Mean of first - second over the same problems in the same order.

    Values are in [0, 1]. The pairs share their problems, so what makes a problem hard for both
    cancels out. The interval is that of `estimate`, of differences instead of values: equal ones
    leave it as wide as Wilson's.

    Raises:
        ValueError: the lengths differ, or there are fewer than two problems.
    """
    pairs = [a - b for a, b in zip(first, second, strict=True)]
    if len(pairs) < 2:
        raise ValueError(f"{len(pairs)} problems; a difference needs two or more")
    found = estimate([(1 + pair) / 2 for pair in pairs], confidence=confidence)
    return Estimate(fmean(pairs), 2 * found.low - 1, 2 * found.high - 1)


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)
