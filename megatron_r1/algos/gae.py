"""Generalised advantage estimation, from the values of a critic."""

from __future__ import annotations

import torch
from torch import Tensor


def gae(
    rewards_L: Tensor, values_L: Tensor, *, discount: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Advantages and returns of the tokens of one response: arXiv:1506.02438 Eq. 16.

        delta_t = r_t + discount V_{t+1} - V_t,     A_t = delta_t + discount lam A_{t+1}

    Args:
        rewards_L: one per token of the response; a reward for the whole stands at the last one.
        values_L: the critic's, of the state in which a token was chosen. After the last token the
            episode has ended, and its value is 0.
        discount: gamma; 1 for language.
        lam: 0 trusts the critic, 1 the rewards.
    Returns:
        advantages_L, and returns_L = advantages_L + values_L, what the critic should have said.
    """
    next_values_L = torch.cat([values_L[1:], values_L.new_zeros(1)])
    deltas = (rewards_L + discount * next_values_L - values_L).tolist()
    advantages = [0.0] * len(deltas)
    following = 0.0
    for t in reversed(range(len(deltas))):
        following = deltas[t] + discount * lam * following
        advantages[t] = following
    advantages_L = values_L.new_tensor(advantages)
    return advantages_L, advantages_L + values_L
