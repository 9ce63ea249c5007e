"""What each estimator estimates, and where its gradient points, on an exact distribution of six."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.kl import kl_k1, kl_k2, kl_k3, kl_penalty
from megatron_r1.config.algo import KlEstimator


def test_values_by_hand():
    # pi = 1/2, pi_ref = 1/4: d = log 2.
    pi, ref = torch.tensor(math.log(0.5)), torch.tensor(math.log(0.25))
    assert_close(kl_k1(pi, ref), torch.tensor(math.log(2)))
    assert_close(kl_k2(pi, ref), torch.tensor(math.log(2) ** 2 / 2))
    assert_close(kl_k3(pi, ref), torch.tensor(0.5 - 1 + math.log(2)))
    # Old policy 1/8: the corrected estimator weighs this token 4 times.
    old = torch.tensor(math.log(0.125))
    corrected = kl_penalty(pi, ref, old, estimator=KlEstimator.k3_corrected)
    assert_close(corrected, torch.tensor(4 * (0.5 - 1 + math.log(2))))


def test_k3_keeps_its_digits_where_the_policies_nearly_agree():
    # d = 1e-4: k3 = d^2 / 2 - d^3 / 6 + ... = 4.9998e-9, of which exp(-d) - 1 + d keeps none.
    pi, ref = torch.tensor(1e-4), torch.tensor(0.0)
    assert_close(kl_k3(pi, ref), torch.tensor(4.9998e-9), rtol=2e-3, atol=0)


# Six-way categoricals; the tokens are drawn from pi_old.
PI_LOGITS = torch.tensor([0.3, -1.2, 0.8, 0.0, 1.5, -0.4], dtype=torch.float64)
REF_LOGITS = torch.tensor([-0.5, 0.9, 0.1, 0.7, 0.2, -1.0], dtype=torch.float64)
OLD_LOGITS = torch.tensor([0.1, -0.9, 0.5, 0.4, 1.1, -0.2], dtype=torch.float64)


@pytest.mark.parametrize("estimator", [KlEstimator.k1, KlEstimator.k3])
def test_k1_and_k3_are_unbiased_estimates(estimator):
    pi, ref = PI_LOGITS.log_softmax(0), REF_LOGITS.log_softmax(0)
    estimate = (pi.exp() * kl_penalty(pi, ref, pi, estimator=estimator)).sum()
    assert_close(estimate, (pi.exp() * (pi - ref)).sum())


def test_k1_loss_pulls_nowhere():
    assert_close(_expected_gradient(KlEstimator.k1, old=PI_LOGITS), torch.zeros_like(PI_LOGITS))


def test_k2_loss_pulls_along_the_reverse_kl():
    assert_close(_expected_gradient(KlEstimator.k2, old=PI_LOGITS), _reverse_kl_gradient())


def test_k3_loss_pulls_along_the_forward_kl():
    gradient = _expected_gradient(KlEstimator.k3, old=PI_LOGITS)
    assert_close(gradient, _forward_kl_gradient())
    # which is another direction: here the relative difference to the reverse KL is above 0.2.
    reverse = _reverse_kl_gradient()
    assert (gradient - reverse).norm() / reverse.norm() > 0.2


@pytest.mark.parametrize("old", [PI_LOGITS, OLD_LOGITS], ids=["on_policy", "off_policy"])
def test_corrected_k3_loss_pulls_along_the_reverse_kl_whoever_drew_the_tokens(old):
    assert_close(_expected_gradient(KlEstimator.k3_corrected, old=old), _reverse_kl_gradient())


def _expected_gradient(estimator: KlEstimator, *, old: torch.Tensor) -> torch.Tensor:
    """Sum over the six tokens of pi_old(token) x gradient of the token's loss."""
    logits = PI_LOGITS.clone().requires_grad_()
    logprobs_old = old.log_softmax(0)
    loss = kl_penalty(
        logits.log_softmax(0), REF_LOGITS.log_softmax(0), logprobs_old, estimator=estimator
    )
    return torch.autograd.grad((logprobs_old.exp() * loss).sum(), logits)[0]


def _reverse_kl_gradient() -> torch.Tensor:
    logits = PI_LOGITS.clone().requires_grad_()
    pi, ref = logits.log_softmax(0), REF_LOGITS.log_softmax(0)
    return torch.autograd.grad((pi.exp() * (pi - ref)).sum(), logits)[0]


def _forward_kl_gradient() -> torch.Tensor:
    logits = PI_LOGITS.clone().requires_grad_()
    pi, ref = logits.log_softmax(0), REF_LOGITS.log_softmax(0)
    return torch.autograd.grad((ref.exp() * (ref - pi)).sum(), logits)[0]
