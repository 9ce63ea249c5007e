"""The fused policy loss against its definition in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

from r1_kernels.backend import Backend
from r1_kernels.grpo_loss import grpo_loss

# Sums of up to 100 terms of size 1 in float32, added up in float64.
F32 = dict(rtol=3e-6, atol=3e-6)


def problem(num_tokens, *, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)

    def normal(scale):
        return torch.randn(num_tokens, generator=generator, dtype=torch.float64) * scale

    logprobs_T = normal(2.0) - 3
    near = torch.arange(num_tokens) % 3 == 0  # log-ratios that are almost 0 lose no digits
    old_T = logprobs_T + torch.where(near, normal(1e-3), normal(0.5))
    ref_T = logprobs_T + torch.where(near, normal(1e-3), normal(1.0))
    weights_T = torch.rand(num_tokens, generator=generator, dtype=torch.float64) / max(
        num_tokens, 1
    )
    mask_T = torch.rand(num_tokens, generator=generator) < 0.7
    tensors = [logprobs_T, old_T, ref_T, normal(1.0), weights_T, mask_T]
    return [x.to(device) for x in tensors]


def run(tensors, **more):
    logprobs_T = tensors[0].detach().clone().requires_grad_()
    loss, sums_5 = grpo_loss(logprobs_T, *tensors[1:], **more)
    assert not sums_5.requires_grad
    (3 * loss).backward()
    return loss.detach().double(), sums_5.double(), logprobs_T.grad.double()


def test_two_tokens_by_hand():
    # Ratios 1.5 and 0.5 with eps 0.2, A = +1: min(1.5, 1.2) = 1.2 and min(0.5, 0.8) = 0.5.
    logprobs_T = torch.tensor([1.5, 0.5]).log().requires_grad_()
    zeros_T, ones_T = torch.zeros(2), torch.ones(2)
    mask_T = torch.tensor([True, True])
    loss, sums_5 = grpo_loss(
        logprobs_T, zeros_T, zeros_T, ones_T, ones_T / 2, mask_T,
        eps_low=0.2, eps_high=0.2, kl_beta=0.1,
    )  # fmt: skip
    # k3 to the reference at ratio r: 1 / r - 1 + log r.
    kl = [1 / 1.5 - 1 + math.log(1.5), 1 / 0.5 - 1 + math.log(0.5)]
    assert_close(loss, torch.tensor(-0.85 + 0.1 * sum(kl) / 2))
    assert_close(sums_5[[0, 1, 2, 4]], torch.tensor([2.0, 1.0, 2.0, sum(kl)]))
    loss.backward()
    # The clipped token moves for the penalty alone: d k3 / d log pi = 1 - 1 / r.
    expected = [0.1 * (1 - 1 / 1.5) / 2, (-0.5 + 0.1 * (1 - 1 / 0.5)) / 2]
    assert_close(logprobs_T.grad, torch.tensor(expected))


@pytest.mark.parametrize("num_tokens", [1, 32, 33, 100])
@pytest.mark.parametrize("kl_beta", [None, 0.0, 0.3])
def test_triton_agrees_with_float64(num_tokens, kl_beta, device):
    tensors = problem(num_tokens, device=device)
    if kl_beta is None:  # no reference at all
        tensors[2] = None
    settings = dict(eps_low=0.2, eps_high=0.3, kl_beta=kl_beta or 0.0)
    expected = run(tensors, backend=Backend.reference, **settings)
    single = [x if x is None or x.dtype is torch.bool else x.float() for x in tensors]
    assert_close(run(single, backend=Backend.triton, **settings), expected, **F32)


@pytest.mark.parametrize("log_ratio", [1e-4, -1e-4, 0.24, -0.24])
def test_kl_near_a_ratio_of_1_loses_no_digits(log_ratio, device):
    """k3 of 1e-4 is 5e-9, and e^x - 1 in float32 is off by 6e-8, more than ten times as much. Its
    gradient, with no advantage beside it, is -kl_beta (e^x - 1). Log-probabilities are as small as
    their differences, so that these are the same in float64."""
    logprobs_T = torch.linspace(-5, 5, 8) * log_ratio
    tensors = [logprobs_T, logprobs_T - log_ratio, logprobs_T + log_ratio, torch.zeros(8)]
    tensors = [x.to(device) for x in (*tensors, torch.ones(8), torch.ones(8, dtype=torch.bool))]
    settings = dict(eps_low=0.5, eps_high=0.5, kl_beta=1.0)
    exact = [x if x.dtype is torch.bool else x.double() for x in tensors]
    wanted, wanted_5, wanted_T = run(exact, backend=Backend.reference, **settings)
    # Triton sums the series. The definition's expm1(x) is off by 2^-24 x, and k3 is x^2 / 2.
    for backend, rtol in ((Backend.triton, 2e-6), (Backend.reference, 2**-22 / abs(log_ratio))):
        loss, sums_5, grad_T = run(tensors, backend=backend, **settings)
        assert_close((loss, sums_5[3:]), (wanted, wanted_5[3:]), rtol=rtol, atol=0)
        assert_close(grad_T, wanted_T, rtol=rtol, atol=0)


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_no_tokens_at_all(backend, device):
    tensors = [x if x.dtype is torch.bool else x.float() for x in problem(0, device=device)]
    loss, sums_5, grad_T = run(tensors, eps_low=0.2, eps_high=0.2, kl_beta=0.1, backend=backend)
    assert loss == 0 and sums_5.tolist() == [0] * 5 and grad_T.shape == (0,)


def test_ratios_that_overflow_are_clipped_or_infinite(device):
    """e^100 is beyond float32 and within float64. With a gain the token is clipped and does not
    move; with a loss it is worth what it is, which a trainer sees."""
    tensors = problem(40, device=device)
    tensors[1][5] = tensors[0][5] - 100
    tensors[-1][5] = True
    settings = dict(eps_low=0.2, eps_high=0.3, kl_beta=0.1)
    for advantage in (2.0, -2.0):
        tensors[3][5] = advantage
        single = [x if x.dtype is torch.bool else x.float() for x in tensors]
        loss, sums_5, grad_T = run(single, backend=Backend.triton, **settings)
        wanted, wanted_5, wanted_T = run(tensors, backend=Backend.reference, **settings)
        others = torch.arange(40, device=device) != 5
        assert_close(grad_T[others], wanted_T[others], **F32)
        assert_close(sums_5[:2], wanted_5[:2], **F32)
        assert sums_5[2] == sums_5[3] == math.inf
        if advantage > 0:
            assert_close((loss, grad_T[5]), (wanted, wanted_T[5]), **F32)
        else:
            assert loss == grad_T[5] == math.inf and wanted > 1e40


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("place", [0, 1, 2, 3])
def test_a_nan_of_a_token_that_counts_is_in_the_loss(place):
    """A GPU's own minimum and maximum pass over it; the interpreter's do not."""
    tensors = [x if x.dtype is torch.bool else x.float() for x in problem(40, device="cuda")]
    tensors[-1][7] = True
    tensors[place][7] = math.nan
    loss, _, grad_T = run(tensors, eps_low=0.2, eps_high=0.2, kl_beta=0.1, backend=Backend.triton)
    assert loss.isnan() and grad_T[7].isnan() and grad_T[:7].isfinite().all()


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_only_the_trained_logprobs_get_a_gradient(backend, device):
    *numbers, mask_T = problem(5, device=device)
    numbers = [x.float().requires_grad_() for x in numbers]
    loss, _ = grpo_loss(*numbers, mask_T, eps_low=0.2, eps_high=0.2, kl_beta=0.1, backend=backend)
    loss.backward()
    assert numbers[0].grad.any() and all(x.grad is None for x in numbers[1:])


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_other_tokens_are_never_read(backend, device):
    tensors = [x if x.dtype is torch.bool else x.float() for x in problem(40, device=device)]
    mask_T = tensors[-1]
    settings = dict(eps_low=10.0, eps_high=10.0, kl_beta=0.001, backend=backend)
    expected = run(tensors, **settings)
    for bad in (math.nan, math.inf, -math.inf):
        spoiled = [torch.where(mask_T, x, bad) for x in tensors[:-1]]
        assert_close(run([*spoiled, mask_T], **settings), expected, rtol=0, atol=0)
    nothing = run([*tensors[:-1], torch.zeros_like(mask_T)], **settings)
    assert nothing[0] == 0 and not nothing[1].any() and not nothing[2].any()


def test_mistakes_are_named():
    tensors = problem(4)
    for low, high in ((0, 1), (1, 0), (0.2, -0.2), (math.nan, 1), (1, math.nan)):
        with pytest.raises(ValueError, match=f"eps_high must be > 0, got {low} and {high}"):
            grpo_loss(*tensors, eps_low=low, eps_high=high)
    tensors[1] = tensors[1][:3]
    with pytest.raises(ValueError, match=r"'logprobs_old_T': \[3\]"):
        grpo_loss(*tensors, eps_low=0.2, eps_high=0.2)


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_masks_of_numbers_and_narrow_numbers_are_refused(backend, device):
    """A mask of 0 and 1 would be places to one backend and True to the other; bfloat16 counts no
    further than 256."""
    tensors = [x if x.dtype is torch.bool else x.float() for x in problem(4, device=device)]
    settings = dict(eps_low=0.2, eps_high=0.2, backend=backend)
    for mask_T in (tensors[-1].long(), tensors[-1].float()):
        with pytest.raises(ValueError, match=rf"mask_T is bool.*'mask_T': {mask_T.dtype}"):
            grpo_loss(*tensors[:-1], mask_T, **settings)
    for place, dtype in ((0, torch.bfloat16), (2, torch.float64), (3, torch.float16)):
        mixed = [x.to(dtype) if n == place else x for n, x in enumerate(tensors)]
        with pytest.raises(ValueError, match=rf"float32, or float64 all.*{dtype}"):
            grpo_loss(*mixed, **settings)
    narrow = [x if x.dtype is torch.bool else x.bfloat16() for x in tensors]
    with pytest.raises(ValueError, match="float32, or float64 all.*torch.bfloat16"):
        grpo_loss(*narrow, **settings)
