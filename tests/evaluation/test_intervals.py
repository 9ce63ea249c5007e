"""Intervals against values that are worked out by hand."""

from __future__ import annotations

import random
from math import sqrt

import pytest

from megatron_r1.evaluation.intervals import Estimate, difference, estimate, wilson

Z = 1.959964


def close(found: Estimate, value: float, low: float, high: float):
    assert (found.value, found.low, found.high) == pytest.approx((value, low, high), abs=1e-6)


def test_means_of_problems_by_the_normal_interval():
    # Mean 0.5; deviations -0.25, 0, 0.25: variance 0.125 / 2, standard error sqrt(0.0625 / 3).
    half = Z * sqrt(0.0625 / 3)
    close(estimate([0.25, 0.5, 0.75]), 0.5, 0.5 - half, 0.5 + half)
    # 1.644854 for 90%.
    half = 1.644854 * sqrt(0.0625 / 3)
    close(estimate([0.25, 0.5, 0.75], confidence=0.9), 0.5, 0.5 - half, 0.5 + half)


def test_outcomes_of_yes_and_no_by_wilson():
    # 8 of 10, z^2 = 3.841459: centre (0.8 + 0.192073) / 1.384146 = 0.716740,
    # half 1.959964 / 1.384146 * sqrt(0.016 + 0.009604) = 0.226578.
    close(wilson(8, 10), 0.8, 0.490162, 0.943318)
    close(estimate([1] * 8 + [0] * 2), 0.8, 0.490162, 0.943318)


def test_all_right_is_no_certainty():
    # 30 of 30: the lower bound is n / (n + z^2) = 30 / 33.841459.
    close(estimate([1.0] * 30), 1.0, 30 / 33.841459, 1.0)
    close(estimate([0.0] * 30), 0.0, 0.0, 3.841459 / 33.841459)


def test_values_that_are_alike_are_no_certainty_either():
    # z^2 / 2(30 + z^2) = 3.841459 / 67.682918 = 0.056757.
    close(estimate([0.5] * 30), 0.5, 0.5 - 0.056757, 0.5 + 0.056757)
    # One of 64 samples of one of 30 problems is wrong: nearly 30 of 30, whose bound is 0.886487.
    found = estimate([1.0] * 29 + [63 / 64])
    assert found.high == pytest.approx(1.0, abs=1e-3)
    assert found.low == pytest.approx(30 / 33.841459, abs=1e-3)
    # Values just as far apart as where the normal interval begins: no step.
    n, least = 16, 3.841459 / (2 * 19.841459)
    spread = least * 4 / Z * sqrt(15 / 16)  # of each value from the mean
    narrow, wide = (
        estimate([0.7 + sign * spread * scale for sign in (-1, 1)] * (n // 2))
        for scale in (0.9999, 1.0001)
    )
    assert narrow.low == pytest.approx(wide.low, abs=1e-3)
    assert wide.low == pytest.approx(0.7 - least, abs=1e-3)


def test_intervals_stay_within_zero_and_one():
    found = estimate([0.9375, 1.0, 1.0, 0.5])
    assert found.high == 1.0
    close(estimate([0.5]), 0.5, 0.0, 1.0)
    with pytest.raises(ValueError, match="no problem"):
        estimate([])


def test_samples_of_a_problem_do_not_narrow_it():
    """Ten problems of 64 samples, all right or all wrong, are ten outcomes and not 640."""
    values = [64 / 64] * 5 + [0 / 64] * 5
    assert estimate(values).high - estimate(values).low > 0.5


def test_a_paired_difference_drops_what_the_problems_share():
    first, second = [0.9, 0.5, 0.3, 0.7] * 1000, [0.8, 0.4, 0.1, 0.5] * 1000
    # Differences 0.1, 0.1, 0.2, 0.2: mean 0.15, standard deviation 0.05 * sqrt(4000 / 3999).
    half = Z * 0.05 / sqrt(3999)
    close(difference(first, second), 0.15, 0.15 - half, 0.15 + half)
    with pytest.raises(ValueError, match="1 problems"):
        difference([0.5], [0.25])


def test_a_difference_that_is_the_same_for_all_problems_is_not_certain():
    """Twice Wilson's of shares, since it lies between -1 and 1."""
    # All of 30 by Wilson: 30 / (30 + 3.841459) = 0.8864866; 2 * 0.8864866 - 1 = 0.772973.
    close(difference([1.0] * 30, [0.0] * 30), 1.0, 0.772973, 1.0)
    close(difference([0.0] * 30, [1.0] * 30), -1.0, -1.0, -0.772973)
    # No difference: half-width 3.841459 / (30 + 3.841459) = 0.113514 about 0.
    close(difference([0.5] * 30, [0.5] * 30), 0.0, -0.113514, 0.113514)
    # Two problems: 2 / (2 + 3.841459) = 0.342380; 2 * 0.342380 - 1 = -0.315240.
    close(difference([1.0] * 2, [0.0] * 2), 1.0, -0.315240, 1.0)


def test_the_interval_covers_the_truth_as_often_as_it_says():
    """60 problems of difficulty uniform in 0 to 1, 8 samples each: the true mean is 0.5."""
    generator = random.Random(1)
    covered = 0
    for _ in range(400):
        rates = [generator.random() for _ in range(60)]
        means = [sum(generator.random() < rate for _ in range(8)) / 8 for rate in rates]
        found = estimate(means)
        covered += found.low <= 0.5 <= found.high
    # Standard error of 0.95 over 400 trials: 0.011.
    assert 0.91 <= covered / 400 <= 0.98
