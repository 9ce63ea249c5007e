"""Rewards to advantages: inside each group of rollouts of one prompt, then over all tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.config.algo import AdvantageBaseline, AdvantageNorm, AlgoConfig


def group_advantages(rewards_PG: Tensor, *, config: AlgoConfig) -> Tensor:
    """(reward - baseline) / (std + eps) inside each group: DeepSeek-R1 (arXiv:2501.12948v2) Eq. 3.

    The paper states neither the convention of std nor an eps: ours is the population's, so that
    rewards 1, 0, 0, 1 give +1 and -1, and `config.advantage_eps`. With AdvantageNorm.none nothing
    is divided (Dr. GRPO, arXiv:2503.20783). AdvantageNorm.batch is the matter of `whiten`, later.

    A group whose rewards are all equal gets exactly 0, whatever the rounding of its mean, unless
    there is no baseline.
    """
    mean_P1 = rewards_PG.mean(dim=1, keepdim=True)
    match config.advantage_baseline:
        case AdvantageBaseline.none:
            return rewards_PG.clone()
        case AdvantageBaseline.group_mean:
            centred_PG = rewards_PG - mean_P1
        case AdvantageBaseline.leave_one_out:
            # r - (G mean - r) / (G - 1): RLOO (arXiv:2402.14740) Eq. 9.
            group_size = rewards_PG.shape[1]
            centred_PG = (rewards_PG - mean_P1) * (group_size / (group_size - 1))
    if config.advantage_norm in (AdvantageNorm.std, AdvantageNorm.sample_std):
        correction = int(config.advantage_norm is AdvantageNorm.sample_std)
        std_P1 = rewards_PG.std(dim=1, correction=correction, keepdim=True)
        centred_PG = centred_PG / (std_P1 + config.advantage_eps)
    return torch.where(zero_std_groups(rewards_PG)[:, None], 0.0, centred_PG)


def zero_std_groups(rewards_PG: Tensor) -> Tensor:
    """bool_P: the groups whose rewards are all equal, which teach the policy nothing."""
    return (rewards_PG == rewards_PG[:, :1]).all(dim=1)


def reward_to_go(rewards_L: Tensor) -> Tensor:
    """From each token to the end of its sequence, the sum of the rewards, undiscounted."""
    return rewards_L.flip(0).cumsum(0).flip(0)


def whiten(values: Tensor, *, mean: float, std: float, eps: float) -> Tensor:
    """(value - mean) / (std + eps), with moments over more values than are here."""
    return (values - mean) / (std + eps)
