"""What a rollout phase looked like, as sums that add up over replicas."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from megatron_r1.algos.advantages import zero_std_groups
from megatron_r1.types import FinishReason, ScoredGroup, spans

Pair = tuple[float, float]
"""(numerator, denominator)."""


def rollout_metrics(scored: Sequence[ScoredGroup]) -> dict[str, Pair]:
    """Rewards, lengths and how many groups teach nothing."""
    rewards = [reward for group in scored for reward in group.rewards]
    rollouts = [rollout for group in scored for rollout in group.group.rollouts]
    count = float(len(rollouts))
    tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    truncated = sum(rollout.finish_reason is FinishReason.length for rollout in rollouts)
    rewards_PG = torch.tensor([[reward.total for reward in group.rewards] for group in scored])
    silent = int(zero_std_groups(rewards_PG).sum()) if scored else 0
    metrics = {
        "reward/mean": (sum(reward.total for reward in rewards), count),
        "rollout/response_tokens_mean": (float(tokens), count),
        "rollout/tokens": (float(tokens), 0.0),
        "rollout/truncated_frac": (float(truncated), count),
        "algo/zero_std_group_frac": (float(silent), float(len(scored))),
    }
    parts = sorted({part for reward in rewards for part in reward.parts})
    for part in parts:
        # Data sets differ in their parts; a mean is over the rollouts that have the part.
        values = [reward.parts[part] for reward in rewards if part in reward.parts]
        metrics[f"reward/{part}"] = (sum(values), float(len(values)))
    return metrics


def staleness(scored: Sequence[ScoredGroup], *, version: int) -> dict[str, Pair]:
    """How many updates older than `version` the weights were that sampled each token."""
    stale = tokens = updates = 0
    for group in scored:
        for rollout in group.group.rollouts:
            for span in spans(rollout):
                num_tokens, age = span.stop - span.start, version - span.version
                tokens += num_tokens
                stale += num_tokens * (age > 0)
                updates += num_tokens * age
    return {
        "rollout/stale_token_frac": (float(stale), float(tokens)),
        "rollout/staleness_updates_mean": (float(updates), float(tokens)),
    }


def add_pairs(one: Mapping[str, Pair], other: Mapping[str, Pair]) -> dict[str, Pair]:
    """Numerators and denominators added up; a metric that one side lacks counts as (0, 0)."""
    none = (0.0, 0.0)
    return {
        name: tuple(a + b for a, b in zip(one.get(name, none), other.get(name, none), strict=True))
        for name in one.keys() | other.keys()
    }
