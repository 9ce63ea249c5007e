"""Rewards to advantages, inside each group of rollouts of one prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.config.algo import AdvantageNorm, GrpoConfig


def group_advantages(rewards_PG: Tensor, *, config: GrpoConfig) -> Tensor:
    """(reward - mean) / (std + eps) inside each group: DeepSeek-R1 (arXiv:2501.12948v2) Eq. 3.

    The paper states neither the convention of std nor an eps: ours is the population's, so that
    rewards 1, 0, 0, 1 give +1 and -1, and `config.advantage_eps`. With AdvantageNorm.none nothing
    is divided (Dr. GRPO, arXiv:2503.20783). A group whose rewards are all equal gets exactly 0,
    whatever the rounding of its mean.
    """
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    if config.advantage_norm is AdvantageNorm.std:
        std_P1 = rewards_PG.std(dim=1, correction=0, keepdim=True)
        centred_PG = centred_PG / (std_P1 + config.advantage_eps)
    return torch.where(zero_std_groups(rewards_PG)[:, None], 0.0, centred_PG)


def zero_std_groups(rewards_PG: Tensor) -> Tensor:
    """bool_P: the groups whose rewards are all equal, which teach the policy nothing."""
    return (rewards_PG == rewards_PG[:, :1]).all(dim=1)
