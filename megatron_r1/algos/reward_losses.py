"""The losses of reward models: pairs, as the helpful one learns, and points, as the safety one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid


def bradley_terry_loss(
    chosen_N: Tensor, rejected_N: Tensor, *, num_pairs: int, centre_weight: float = 0.0
) -> Tensor:
    """-log sigmoid(score(chosen) - score(rejected)): arXiv:1706.03741, arXiv:2203.02155 Eq. 1.

    Args:
        chosen_N, rejected_N: the model's scalar scores.
        num_pairs: pairs of the whole step, over all ranks, so that per-rank losses add up.
        centre_weight: of (chosen + rejected)^2, which fixes the scale's free origin
            (arXiv:2312.09244 section 2).
    """
    loss_N = -logsigmoid(chosen_N - rejected_N)
    if centre_weight > 0:
        loss_N = loss_N + centre_weight * (chosen_N + rejected_N).square()
    return torch.sum(loss_N) / num_pairs


def pointwise_loss(scores_N: Tensor, labels_N: Tensor, *, num_examples: int) -> Tensor:
    """Binary cross-entropy of single responses.

    DeepSeek-R1 (arXiv:2501.12948v2) section 3.1 trains its safety model point-wise so, on 106,000
    responses labelled safe or unsafe, and prints no equation.

    Args:
        scores_N: the model's scalar scores, as logits of "safe".
        labels_N: 1 safe, 0 unsafe; a number in between is a probability.
        num_examples: responses of the whole step, over all ranks.
    """
    labels_N = labels_N.to(scores_N.dtype)
    loss_N = binary_cross_entropy_with_logits(scores_N, labels_N, reduction="none")
    return torch.sum(loss_N) / num_examples
