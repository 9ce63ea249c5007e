"""The slowest rank, with its host, against the median."""

from __future__ import annotations

import pytest

from megatron_r1.telemetry.stragglers import slowest


def test_the_slowest_rank_is_measured_against_the_median():
    found = slowest("rollouts", [4.0, 5.2, 4.0, 3.0], ["n0", "n0", "n1", "n1"])
    assert (found.rank, found.host) == (1, "n0")
    assert found.excess_frac == pytest.approx(0.3)  # 5.2 / 4.0 - 1
    assert found.describe() == "rollouts: rank 1 on n0 took 5.2 s, 30% above the median"


def test_nothing_measured_is_no_excess():
    assert slowest("rollouts", [0.0, 0.0], ["n0", "n1"]).excess_frac == 0.0
