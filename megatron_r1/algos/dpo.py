"""Direct preference optimisation: a policy learns from pairs without a reward model."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from megatron_r1.algos.reduce import mean_parts, sequence_sums
from megatron_r1.algos.shapes import check_same_shape
from megatron_r1.config.algo import DpoConfig
from megatron_r1.types import LossOutput, MicroBatch


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


def dpo_pair_loss(
    logprobs_T: Tensor, micro: MicroBatch, *, config: DpoConfig, num_pairs: int
) -> LossOutput:
    """`dpo_loss` of a micro-batch of pairs: each chosen response, then the rejected one.

    Args:
        logprobs_T: nats, float32; the only input that carries a gradient.
        micro: whole pairs, with the reference's log-probabilities.
        num_pairs: pairs of the whole step, over all ranks.
    Returns:
        This micro-batch's share of the step's loss, and under ``preference/`` the share of pairs
        that the implicit reward, beta log(pi / pi_ref) of a response, orders right, and the means
        of both rewards and of their difference.
    Raises:
        ValueError: logprobs_T and the tensors of `micro` differ in shape.
    """
    check_same_shape(
        logprobs_T=logprobs_T, logprobs_ref_T=micro.logprobs_ref_T, loss_mask_T=micro.loss_mask_T
    )
    log_pi_N2, log_ref_N2 = (
        pair_columns(sequence_sums(values_T, micro.loss_mask_T, micro.seq_lengths), micro)
        for values_T in (logprobs_T, micro.logprobs_ref_T)
    )
    loss = dpo_loss(
        *log_pi_N2.unbind(1),
        *log_ref_N2.unbind(1),
        beta=config.beta,
        num_pairs=num_pairs,
        label_smoothing=config.label_smoothing,
    )
    chosen_N, rejected_N = (config.beta * (log_pi_N2 - log_ref_N2)).unbind(1)
    metrics = {
        "preference/accuracy": mean_parts(chosen_N > rejected_N),
        "preference/margin": mean_parts(chosen_N - rejected_N),
        "preference/chosen_reward": mean_parts(chosen_N),
        "preference/rejected_reward": mean_parts(rejected_N),
    }
    return LossOutput(loss=loss, metrics=metrics)


def pair_columns(values_S: Tensor, micro: MicroBatch) -> Tensor:
    """values_N2, chosen and rejected, of a micro-batch of pairs: padding's sequence is left out."""
    num_sequences = len(micro.seq_lengths) - (micro.num_padding > 0)
    return values_S[:num_sequences].view(-1, 2)
