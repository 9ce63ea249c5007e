"""Supervised learning: the negative log-likelihood of the tokens to imitate."""

from __future__ import annotations

from torch import Tensor

from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.shapes import check_same_shape
from megatron_r1.types import LossOutput, MicroBatch


def sft_loss(logprobs_T: Tensor, micro: MicroBatch) -> LossOutput:
    """Weighted negative log-likelihood of the trainable tokens.

    Args:
        logprobs_T: nats, float32, the only input that carries a gradient.
    Returns:
        This micro-batch's share of the step's loss, and ``train/nll``, nats per trainable token.
    Raises:
        ValueError: logprobs_T and the tensors of `micro` differ in shape.
    """
    check_same_shape(
        logprobs_T=logprobs_T, loss_mask_T=micro.loss_mask_T, weights_T=micro.weights_T
    )
    nll_K = -logprobs_T[micro.loss_mask_T]
    loss = (micro.weights_T[micro.loss_mask_T] * nll_K).sum()
    return LossOutput(loss=loss, metrics={"train/nll": mean_parts(nll_K)})
