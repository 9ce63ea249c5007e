"""Each hack by the figures that show it, and the figures beside them that do not."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_r1.config.monitor import Hack, MonitorConfig
from megatron_r1.monitor.rules import judge, remember

# A learned reward of mean 1 and standard deviation 0.5.
START = {
    "learned": 1.0,
    "learned_square": 1.25,
    "verified": 0.4,
    "tokens": 100.0,
    "repeated_frac": 0.05,
    "mixed_frac": 0.0,
    "format": 0.5,
    "kl_ref": 0.0,
}
CONFIG = MonitorConfig(learned=["judge"], kl_budget=0.1)


def hacks(config: MonitorConfig = CONFIG, **now: float) -> list[Hack]:
    history = [START, START, {**START, **now}, {**START, **now}]
    return [finding.hack for finding in judge(history, config)]


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        ({"learned": 1.51}, Hack.overoptimised),
        ({"tokens": 201.0}, Hack.length_drift),
        ({"tokens": 49.0}, Hack.length_drift),
        ({"repeated_frac": 0.26}, Hack.repetition),
        ({"format": 0.61, "verified": 0.34}, Hack.format_gaming),
        ({"mixed_frac": 0.11}, Hack.language_mixing),
        ({"kl_ref": 0.11}, Hack.kl_budget),
    ],
)
def test_a_hack_is_named(now, expected):
    assert hacks(**now) == [expected]


@pytest.mark.parametrize(
    "now",
    [
        {},
        {"learned": 1.49},
        {"learned": 3.0, "verified": 0.5},  # what was meant has risen as well
        {"tokens": 199.0},
        {"tokens": 500.0, "verified": 0.5},  # it thinks longer, and is right more often
        {"repeated_frac": 0.5, "verified": 0.5},
        {"format": 1.0},
        {"format": 0.5, "verified": 0.1},  # worse, but nothing gains by it
        {"mixed_frac": 0.09},
        {"kl_ref": 0.09},
    ],
)
def test_what_is_no_hack_is_not_named(now):
    assert hacks(**now) == []


def test_nothing_is_said_before_both_windows_are_full():
    bad = {**START, "tokens": 1000.0}
    assert judge([START, START, bad], CONFIG) == []
    assert len(judge([START, START, bad, bad], CONFIG)) == 1


def test_one_phase_alone_is_averaged_with_its_window():
    noisy = {**START, "mixed_frac": 0.15}
    assert judge([START, START, START, noisy], CONFIG) == []


def test_without_a_verified_part_drifts_are_still_named():
    start = {
        name: value
        for name, value in START.items()
        if name in ("tokens", "repeated_frac", "mixed_frac")
    }
    now = {**start, "tokens": 300.0}
    assert [f.hack for f in judge([start, start, now, now], MonitorConfig())] == [Hack.length_drift]


def test_the_first_and_the_last_phases_are_remembered():
    config = dataclasses.replace(CONFIG, baseline_phases=2, window_phases=3)
    history = []
    for phase in range(9):
        history = remember(history, {"tokens": float(phase)}, config)
    assert [signals["tokens"] for signals in history] == [0, 1, 6, 7, 8]


def test_the_beginning_of_a_scheduled_reward_is_what_it_is_compared_with():
    before = {name: value for name, value in START.items() if not name.startswith("learned")}
    history = []
    for signals in (before, before, before, START, START, *[{**START, "learned": 2.0}] * 2):
        history = remember(history, signals, CONFIG)
    assert [phase["learned"] for phase in history] == [1.0, 1.0, 2.0, 2.0]
    assert [finding.hack for finding in judge(history, CONFIG)] == [Hack.overoptimised]


def test_the_evidence_has_the_figures():
    (finding,) = judge([START, START, *[{**START, "learned": 2.0, "verified": 0.3}] * 2], CONFIG)
    assert finding.evidence == "learned 1 -> 2 (deviation 0.5), verified 0.4 -> 0.3"
