"""The critic's loss."""

from __future__ import annotations

import torch
from torch import Tensor


def value_loss(
    values_K: Tensor, values_old_K: Tensor, returns_K: Tensor, weights_K: Tensor, *, clip: float
) -> Tensor:
    """Clipped squared error: half the larger of two squares, weighted and summed.

        1/2 max((V - R)^2, (clip(V, V_old - clip, V_old + clip) - R)^2)

    The clip is that of OpenAI's PPO code, which the paper (arXiv:1707.06347) does not mention;
    arXiv:2005.12729 lists it among PPO's code-level optimisations.

    Args:
        values_K: the critic's, being trained.
        values_old_K: its values when the rollouts were sampled.
        returns_K: targets; `algos/gae.py`.
        weights_K: each token's share in the step's loss; `algos/reduce.py`.
    """
    near_K = torch.clamp(values_K, values_old_K - clip, values_old_K + clip)
    error_K = torch.maximum((values_K - returns_K).square(), (near_K - returns_K).square())
    return 0.5 * (weights_K * error_K).sum()
