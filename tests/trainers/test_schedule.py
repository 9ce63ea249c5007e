"""Learning rates by hand."""

from __future__ import annotations

import pytest

from megatron_r1.config.optimizer import DecayStyle, OptimizerConfig
from megatron_r1.trainers.schedule import learning_rate


def rates(num_steps: int, **fields) -> list[float]:
    config = OptimizerConfig(lr=1.0, **fields)
    return [learning_rate(step, num_steps, config) for step in range(num_steps)]


def test_warmup_rises_to_lr_and_its_first_update_moves():
    assert rates(7, warmup_steps=4) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0]


def test_linear_decay_ends_on_min_lr():
    expected = [1.0, 0.8, 0.6, 0.4, 0.2]
    assert rates(5, decay=DecayStyle.linear, min_lr=0.2) == pytest.approx(expected)


def test_cosine_decay_is_half_way_in_the_middle():
    # 0.2 + 0.8 x (1 + cos(0, 60, 90, 120, 180 degrees)) / 2; six intervals, thirds at steps 2 and 4
    found = rates(7, decay=DecayStyle.cosine, min_lr=0.2)
    assert [found[i] for i in (0, 2, 3, 4, 6)] == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2])


def test_decay_starts_at_lr_when_warmup_ends():
    expected = [0.5, 1.0, 1.0, 0.5, 0.0]
    assert rates(5, warmup_steps=2, decay=DecayStyle.linear) == pytest.approx(expected)


@pytest.mark.parametrize("decay", list(DecayStyle))
def test_runs_shorter_than_their_warmup_and_steps_past_the_end_stay_in_range(decay):
    config = OptimizerConfig(lr=1.0, min_lr=0.1, warmup_steps=8, decay=decay)
    assert learning_rate(2, 3, config) == pytest.approx(3 / 8)
    end = 1.0 if decay is DecayStyle.constant else 0.1
    assert learning_rate(50, 20, config) == pytest.approx(end)
