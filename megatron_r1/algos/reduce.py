"""How token losses become one number: a weight for each token, from counts of the whole step.

The counts are global (all micro-batches, all data-parallel replicas), so the weighted sum of any
part of the tokens is that part's share of the step's loss, and shares are added, never averaged.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from megatron_r1.config.algo import LossReduction


def token_weight(
    num_tokens: int,
    *,
    reduction: LossReduction,
    num_rollouts: int,
    total_tokens: int,
    max_response_tokens: int,
) -> float:
    """The share of one trainable token of a row in the step's loss.

    Args:
        num_tokens: trainable tokens of this row. A row without any has weight 0, and still counts
            in num_rollouts: the other rows weigh no more for it.
        num_rollouts: rows of the whole step.
        total_tokens: trainable tokens of the whole step.
        max_response_tokens: the constant divisor of Dr. GRPO.
    """
    if num_tokens == 0:
        return 0.0
    match reduction:
        case LossReduction.rollout_mean:
            return 1.0 / (num_rollouts * num_tokens)
        case LossReduction.token_mean:
            return 1.0 / total_tokens
        case LossReduction.constant:
            return 1.0 / (num_rollouts * max_response_tokens)


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where the mask is True, 0 if it never is; the others may be NaN."""
    return torch.where(mask, values, 0.0).sum() / mask.sum().clamp(min=1)


def sequence_sums(values_T: Tensor, mask_T: Tensor, seq_lengths: Sequence[int]) -> Tensor:
    """sums_S: of each sequence, the values where the mask is True; the others may be NaN."""
    kept_T = torch.where(mask_T, values_T, 0.0)
    return torch.stack([values_L.sum() for values_L in kept_T.split(list(seq_lengths))])


def max_part(values: Tensor) -> tuple[Tensor, Tensor]:
    """A maximum, of values >= 0, as (maximum, 0): its metric's name ends in ``_max``."""
    values = values.detach().float()
    return torch.cat([values, values.new_zeros(1)]).max(), values.new_zeros(())


def mean_parts(values: Tensor) -> tuple[Tensor, Tensor]:
    """A mean as (sum, count), float32, no gradient: a metric that adds up over micro-batches."""
    values = values.detach().float()
    return values.sum(), values.new_tensor(values.numel())
