"""The unbiased estimator against counting and against worked values."""

from __future__ import annotations

from itertools import combinations

import pytest

from megatron_r1.evaluation.pass_at_k import pass_at_k


@pytest.mark.parametrize(
    ("k", "expected"),
    [
        (1, [0, 0.0625, 0.25, 0.5, 0.9375, 1]),
        # c = 1: half of the draws of 8 hold it. c = 8: one draw of C(16, 8) = 12,870 has none.
        (8, [0, 0.5, 0.961538, 0.999922, 1, 1]),
    ],
)
def test_sixteen_samples(k, expected):
    found = [pass_at_k(16, correct, k) for correct in (0, 1, 4, 8, 15, 16)]
    assert found == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_it_is_the_share_of_draws_with_a_correct_sample(k):
    samples = [True, True, False, False, False]
    draws = [any(draw) for draw in combinations(samples, k)]
    assert pass_at_k(5, 2, k) == pytest.approx(sum(draws) / len(draws))


@pytest.mark.parametrize("k", [0, 5])
def test_k_beyond_the_samples_is_refused(k):
    with pytest.raises(ValueError, match=f"k = {k} .* num_samples = 4"):
        pass_at_k(4, 2, k)
