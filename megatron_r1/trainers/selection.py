"""Which sampled groups a phase is trained on, and how many prompts to draw for that."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch

from megatron_r1.algos.advantages import zero_std_groups
from megatron_r1.algos.overlong import overlong_penalty
from megatron_r1.types import Reward, ScoredGroup

OVERLONG = "overlong"
"""The part of a reward that DAPO's soft punishment adds."""


def without_silent_groups(scored: Sequence[ScoredGroup]) -> list[ScoredGroup]:
    """The groups whose rewards differ: the others' advantages are all 0."""
    if not scored:
        return []
    rewards_PG = torch.tensor([[reward.total for reward in group.rewards] for group in scored])
    silent_P = zero_std_groups(rewards_PG).tolist()
    return [group for group, silent in zip(scored, silent_P, strict=True) if not silent]


def num_prompts_to_draw(wanted: int, *, drawn: int, kept: int, multiple: int) -> int:
    """Prompts of the next sampling round of a phase.

    At first as many as the phase wants; later as many as should leave the missing ones, at the rate
    at which groups have been kept so far, but no more than a phase. A multiple of `multiple`, so
    that every replica has the same share.
    """
    if drawn == 0:
        return wanted
    expected = math.ceil((wanted - kept) * drawn / max(kept, 1))
    return -(-min(wanted, expected) // multiple) * multiple


def with_overlong_penalty(
    group: ScoredGroup, *, max_response_tokens: int, cache_tokens: int
) -> ScoredGroup:
    """The same group, each reward with a part for its length; the others stay as they are."""
    rewards = [
        _punished(
            reward,
            len(rollout.token_ids),
            overlong_penalty(
                len(rollout.token_ids),
                max_response_tokens=max_response_tokens,
                cache_tokens=cache_tokens,
            ),
        )
        for rollout, reward in zip(group.group.rollouts, group.rewards, strict=True)
    ]
    return dataclasses.replace(group, rewards=tuple(rewards))


def _punished(reward: Reward, num_tokens: int, penalty: float) -> Reward:
    return Reward(
        total=reward.total + penalty,
        parts={**reward.parts, OVERLONG: penalty},
        reasons={**reward.reasons, OVERLONG: f"{num_tokens} tokens"},
    )
