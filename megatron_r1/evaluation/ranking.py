"""How well scores order responses whose order is known."""

from __future__ import annotations

import torch
from torch import Tensor


def auc(scores_N: Tensor, is_positive_N: Tensor) -> float:
    """Area under the ROC curve: how often a positive outscores a negative; a tie counts half.

    Mann and Whitney's U over the number of pairs; 0.5 is chance.

    Raises:
        ValueError: all are positive, or none is.
    """
    scores_N, is_positive_N = scores_N.double(), is_positive_N.bool()
    num_positive = int(is_positive_N.sum())
    num_pairs = num_positive * (len(scores_N) - num_positive)
    if num_pairs == 0:
        raise ValueError(f"{num_positive} of {len(scores_N)} are positive: there is no pair")
    _, place_N, counts = torch.unique(scores_N, return_inverse=True, return_counts=True)
    # Ranks from 1; equal scores share their mean.
    rank_N = (counts.cumsum(0) - (counts - 1) / 2)[place_N]
    u = rank_N[is_positive_N].sum() - num_positive * (num_positive + 1) / 2
    return float(u / num_pairs)


def pair_metrics(chosen_N: Tensor, rejected_N: Tensor) -> dict[str, float]:
    """How scores order N pairs: share in the right order, mean difference, AUC of all responses."""
    scores_M = torch.cat((chosen_N, rejected_N))
    is_chosen_M = torch.arange(len(scores_M)) < len(chosen_N)
    return {
        "accuracy": float((chosen_N > rejected_N).double().mean()),
        "margin": float((chosen_N - rejected_N).mean()),
        "auc": auc(scores_M, is_chosen_M),
    }


def label_metrics(scores_N: Tensor, is_positive_N: Tensor) -> dict[str, float]:
    """How scores tell N labelled responses apart: share on the right side of 0, difference of the
    means, AUC."""
    is_positive_N = is_positive_N.bool()
    positive, negative = scores_N[is_positive_N], scores_N[~is_positive_N]
    return {
        "accuracy": float(((scores_N > 0) == is_positive_N).double().mean()),
        "margin": float(positive.mean() - negative.mean()),
        "auc": auc(scores_N, is_positive_N),
    }
