"""Length, repetition and the edge before the longest response."""

from __future__ import annotations

from dataclasses import replace

import pytest

from megatron_r1.config.reward import OverlongConfig, RepetitionConfig, RewardConfig
from megatron_r1.errors import ConfigError
from megatron_r1.rewards.length import length
from megatron_r1.rewards.overlong import overlong
from megatron_r1.rewards.repetition import repetition
from megatron_r1.types import Reward, Rollout, RolloutGroup
from tests.rewards.builders import prompt_of, rollout_of


def of_tokens(tokens) -> Rollout:
    return replace(rollout_of(""), token_ids=tuple(tokens))


def lengths(*cases: tuple[int, float]) -> list[float]:
    """Length rewards of (tokens, accuracy)."""
    rollouts = tuple(of_tokens(range(tokens)) for tokens, _ in cases)
    rewards = [Reward(right, {"accuracy": right}, {}) for _, right in cases]
    return [value for value, _ in length(RolloutGroup(prompt_of(), rollouts), rewards)]


def test_short_right_answers_gain_and_long_wrong_ones_lose():
    # lambda = 0.5 - (len - 10) / 20: 0.5, 0, -0.5
    assert lengths((10, 1), (20, 1), (30, 1)) == [0.5, 0.0, -0.5]
    # Wrong: min(0, lambda).
    assert lengths((10, 0), (20, 0), (30, 0)) == [0.0, 0.0, -0.5]
    assert lengths((10, 0), (15, 1), (30, 0)) == [0.0, 0.25, -0.5]


def test_equal_lengths_are_worth_nothing():
    assert lengths((7, 1), (7, 0)) == [0.0, 0.0]
    assert lengths((7, 1)) == [0.0]


def test_length_needs_accuracy():
    with pytest.raises(ConfigError, match="length needs accuracy"):
        RewardConfig(weights={"length": 1.0, "format": 1.0})
    with pytest.raises(ConfigError, match="length needs accuracy at every step"):
        RewardConfig(weights={"length": 1.0, "accuracy": 1.0}, schedules={"accuracy": {10: 1.0}})


@pytest.mark.parametrize(
    ("tokens", "value"),
    [
        (range(10), 0.0),
        # 3-grams of 1 2 3 1 2 3: 123 231 312 123, one of four repeats.
        ([1, 2, 3, 1, 2, 3], -0.25),
        # 8 equal 3-grams, 7 of them again.
        ([5] * 10, -7 / 8),
        ([1, 2], 0.0),
        ([], 0.0),
    ],
)
def test_repetition(tokens, value):
    config = RepetitionConfig(ngram_tokens=3)
    assert repetition(prompt_of(), of_tokens(tokens), config=config)[0] == pytest.approx(value)


@pytest.mark.parametrize(
    ("tokens", "value"),
    [(0, 0.0), (80, 0.0), (81, -0.05), (90, -0.5), (100, -1.0), (120, -1.0)],
)
def test_overlong(tokens, value):
    config = OverlongConfig(max_response_tokens=100, buffer_tokens=20)
    assert overlong(prompt_of(), of_tokens(range(tokens)), config=config)[0] == value


def test_a_buffer_beyond_the_limit_is_refused():
    with pytest.raises(ConfigError, match="buffer_tokens = 200 must lie between 1 and"):
        OverlongConfig(max_response_tokens=100, buffer_tokens=200)
