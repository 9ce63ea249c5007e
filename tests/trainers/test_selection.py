"""Which groups are trained on, and what a response's length costs."""

from __future__ import annotations

import pytest

from megatron_r1.trainers.selection import (
    num_prompts_to_draw,
    with_overlong_penalty,
    without_silent_groups,
)
from tests.trainers.test_minibatches import scored_group


def test_only_groups_whose_rewards_differ_are_kept():
    scored = [scored_group([1, 1]), scored_group([0, 1]), scored_group([0, 0])]
    assert without_silent_groups(scored) == [scored[1]]
    assert without_silent_groups([]) == []


def test_a_round_draws_what_the_rate_so_far_promises():
    assert num_prompts_to_draw(64, drawn=0, kept=0, multiple=4) == 64
    # 48 of 64 were kept, 16 are missing: 16 / (48 / 64) = 21.3, up to a multiple of 4.
    assert num_prompts_to_draw(64, drawn=64, kept=48, multiple=4) == 24
    # None was kept: a whole phase again.
    assert num_prompts_to_draw(64, drawn=64, kept=0, multiple=4) == 64


def test_overlong_punishment_is_a_part_of_the_reward():
    # Rollout g has 1 + g tokens. Of at most 4, the last 2 are the cache: 0, 0, -1/2, -1.
    group = with_overlong_penalty(scored_group([1, 1, 1, 1]), max_response_tokens=4, cache_tokens=2)
    assert [reward.total for reward in group.rewards] == pytest.approx([1, 1, 0.5, 0])
    assert [reward.parts["overlong"] for reward in group.rewards] == pytest.approx([0, 0, -0.5, -1])
    assert group.rewards[3].reasons["overlong"] == "4 tokens"
