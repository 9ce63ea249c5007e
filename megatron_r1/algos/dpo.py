"""Direct preference optimisation."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def dpo_loss(
    chosen_N: Tensor,
    rejected_N: Tensor,
    chosen_ref_N: Tensor,
    rejected_ref_N: Tensor,
    *,
    beta: float,
    num_pairs: int,
    label_smoothing: float = 0.0,
) -> Tensor:
    """Negative log-likelihood of N preferences under the policy's implicit reward.

        -log sigmoid(beta (log pi(y_w)/pi_ref(y_w) - log pi(y_l)/pi_ref(y_l)))

    DPO (arXiv:2305.18290) Eq. 7.

    Args:
        chosen_N, rejected_N: log-probability of a whole response, summed over its tokens, nats.
        chosen_ref_N, rejected_ref_N: the reference policy's.
        beta: weight of the KL in the objective behind it.
        num_pairs: pairs of the whole step, over all ranks, so that per-rank losses add up.
        label_smoothing: the share of labels taken to be wrong (conservative DPO, E. Mitchell,
            https://ericmitchell.ai/cdpo.pdf, Eq. 3).
    Returns:
        The sum over these pairs / num_pairs.
    """
    margin_N = beta * ((chosen_N - chosen_ref_N) - (rejected_N - rejected_ref_N))
    loss_N = -(1 - label_smoothing) * logsigmoid(margin_N)
    if label_smoothing > 0:
        loss_N = loss_N - label_smoothing * logsigmoid(-margin_N)
    return torch.sum(loss_N) / num_pairs
