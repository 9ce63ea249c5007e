"""Distillation from a teacher's logits. From its samples, as in DeepSeek-R1, it is `sft.py`."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def distillation_loss(
    logits_KV: Tensor,
    teacher_logits_KV: Tensor,
    weights_K: Tensor,
    *,
    interpolation: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Generalised Jensen-Shannon divergence between teacher p and student q at each token.

        0: KL(p || q)    1: KL(q || p)    b: b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q

    GKD (arXiv:2306.13649) Eq. 1; 0 is the classical loss (arXiv:1503.02531) up to the teacher's
    entropy. The values at 0 and 1 are the limits of JSD(b) / b and JSD(b) / (1 - b), as the paper
    has it.

    Args:
        logits_KV: the student's, of all columns of the vocabulary; the only input with a gradient.
        weights_K: each token's share in the step's loss; `algos/reduce.py`.
        interpolation: b, in [0, 1].
        temperature: divides both logits.
    Raises:
        ValueError: interpolation is outside [0, 1].
    """
    if not 0 <= interpolation <= 1:
        raise ValueError(f"interpolation must be in [0, 1], got {interpolation}")
    student_KV = torch.log_softmax(logits_KV / temperature, dim=-1)
    teacher_KV = torch.log_softmax(teacher_logits_KV / temperature, dim=-1)
    if interpolation == 0:
        divergence_K = _kl(teacher_KV, student_KV)
    elif interpolation == 1:
        divergence_K = _kl(student_KV, teacher_KV)
    else:
        mixture_KV = torch.logaddexp(
            teacher_KV + math.log(interpolation), student_KV + math.log1p(-interpolation)
        )
        divergence_K = interpolation * _kl(teacher_KV, mixture_KV) + (1 - interpolation) * _kl(
            student_KV, mixture_KV
        )
    return (weights_K * divergence_K).sum()


def _kl(log_p_KV: Tensor, log_q_KV: Tensor) -> Tensor:
    return (log_p_KV.exp() * (log_p_KV - log_q_KV)).sum(dim=-1)
