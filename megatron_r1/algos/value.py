"""The critic's loss."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.algos.logprobs import align_to_tokens
from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.shapes import check_same_shape
from megatron_r1.types import LossOutput, MicroBatch


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


def critic_loss(scores_T: Tensor, micro: MicroBatch, *, clip: float) -> LossOutput:
    """`value_loss` at the tokens that the policy sampled.

    Args:
        scores_T: what a scalar head says at each token, which has seen that token: the value of the
            state in which the next one is chosen; the only input that carries a gradient.
        micro: with the critic's earlier values and the returns, token-aligned.
        clip: see `value_loss`.
    Returns:
        This micro-batch's share of the step's loss, and ``critic/value_mean``,
        ``critic/return_mean``, ``critic/squared_error`` and ``critic/clip_frac``.
    Raises:
        ValueError: the tensors differ in shape.
    """
    check_same_shape(
        scores_T=scores_T,
        values_old_T=micro.values_old_T,
        returns_T=micro.returns_T,
        loss_mask_T=micro.loss_mask_T,
    )
    mask_T = micro.loss_mask_T
    values_K = align_to_tokens(scores_T, micro.positions_T)[mask_T]
    old_K, returns_K = micro.values_old_T[mask_T], micro.returns_T[mask_T]
    loss = value_loss(values_K, old_K, returns_K, micro.weights_T[mask_T], clip=clip)
    metrics = {
        "critic/value_mean": mean_parts(values_K),
        "critic/return_mean": mean_parts(returns_K),
        "critic/squared_error": mean_parts((values_K - returns_K).square()),
        "critic/clip_frac": mean_parts((values_K - old_K).abs() > clip),
    }
    return LossOutput(loss=loss, metrics=metrics)
