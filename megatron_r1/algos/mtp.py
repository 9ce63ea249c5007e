"""The loss of prediction layers: the negative log-likelihood of tokens further ahead."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.shapes import check_same_shape
from megatron_r1.types import LossOutput, MicroBatch


def mtp_loss(logprobs_KT: list[Tensor], micro: MicroBatch, *, weight: float) -> LossOutput:
    """DeepSeek-V3 (arXiv:2412.19437) Eq. 24 and 25, over the trainable tokens of a micro-batch.

    Eq. 24 takes a mean over all tokens of a sequence; each token here has the weight that it has in
    the main loss. Layer k has nothing to predict a sequence's first k + 1 tokens from.

    Args:
        logprobs_KT: of prediction layer k = 1, 2, ..., token-aligned; nats, float32.
        weight: lambda of Eq. 25, shared by all K layers.
    Returns:
        This micro-batch's share of the step's loss, and ``train/mtp_nll``, nats per prediction.
    """
    loss = micro.weights_T.new_zeros(())
    nll = []
    for depth, logprobs_T in enumerate(logprobs_KT, start=1):
        check_same_shape(logprobs_T=logprobs_T, loss_mask_T=micro.loss_mask_T)
        predicted_T = micro.loss_mask_T & (micro.positions_T > depth)
        nll_N = -logprobs_T[predicted_T]
        loss = loss + (micro.weights_T[predicted_T] * nll_N).sum()
        nll.append(nll_N)
    return LossOutput(
        loss=weight / len(logprobs_KT) * loss,
        metrics={"train/mtp_nll": mean_parts(torch.cat(nll))},
    )
