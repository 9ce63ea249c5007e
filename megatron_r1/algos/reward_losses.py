"""The losses of reward models: pairs, as the helpful one learns, and points, as the safety one."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from megatron_r1.algos.reduce import mean_parts
from megatron_r1.types import LossOutput, MicroBatch


def bradley_terry_loss(
    chosen_N: Tensor,
    rejected_N: Tensor,
    *,
    num_pairs: int,
    centre_weight: float = 0.0,
    margins_N: Tensor | None = None,
) -> Tensor:
    """-log sigmoid(score(chosen) - score(rejected)): arXiv:1706.03741, arXiv:2203.02155 Eq. 1.

    Args:
        chosen_N, rejected_N: the model's scalar scores.
        num_pairs: pairs of the whole step, over all ranks, so that per-rank losses add up.
        centre_weight: of (chosen + rejected)^2, which fixes the scale's free origin
            (arXiv:2312.09244 section 2).
        margins_N: what the difference is asked to exceed, inside the sigmoid (Llama 2,
            arXiv:2307.09288 Eq. 2).
    """
    difference_N = chosen_N - rejected_N
    if margins_N is not None:
        difference_N = difference_N - margins_N
    loss_N = -logsigmoid(difference_N)
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


def scored_pairs_loss(
    scores_T: Tensor,
    micro: MicroBatch,
    *,
    num_pairs: int,
    centre_weight: float = 0.0,
    margin_weight: float = 0.0,
) -> LossOutput:
    """`bradley_terry_loss` of a micro-batch of pairs, each chosen first, then rejected.

    Args:
        scores_T: of every token; a row's score is the one where its loss mask is True.
        margin_weight: times the label of a pair's rows is its margin.
    Returns:
        The micro-batch's share of the loss, and ``reward_model/accuracy``, ``/margin``, ``/score``.
    """
    scores_N2 = scores_T[micro.loss_mask_T].view(-1, 2)
    chosen_N, rejected_N = scores_N2.unbind(1)
    margins_N = margin_weight * micro.labels_T[micro.loss_mask_T].view(-1, 2)[:, 0]
    loss = bradley_terry_loss(
        chosen_N,
        rejected_N,
        num_pairs=num_pairs,
        centre_weight=centre_weight,
        margins_N=margins_N,
    )
    metrics = {
        "reward_model/accuracy": mean_parts(chosen_N > rejected_N),
        "reward_model/margin": mean_parts(chosen_N - rejected_N),
        "reward_model/score": mean_parts(scores_N2),
    }
    return LossOutput(loss=loss, metrics=metrics)


def scored_points_loss(scores_T: Tensor, micro: MicroBatch, *, num_examples: int) -> LossOutput:
    """`pointwise_loss` of a micro-batch of labelled responses.

    Args:
        scores_T: of every token; a row's score is the one where its loss mask is True.
    Returns:
        The micro-batch's share of the loss, and ``reward_model/accuracy`` (a score above 0 says
        safe) and ``/score``.
    """
    scores_N = scores_T[micro.loss_mask_T]
    labels_N = micro.labels_T[micro.loss_mask_T]
    metrics = {
        "reward_model/accuracy": mean_parts((scores_N > 0) == (labels_N > 0.5)),
        "reward_model/score": mean_parts(scores_N),
    }
    loss = pointwise_loss(scores_N, labels_N, num_examples=num_examples)
    return LossOutput(loss=loss, metrics=metrics)
