"""Distillation on logits against float64 autograd, on one tensor rank and on two."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from megatron_r1.algos.distill import teacher_divergence

F32 = dict(rtol=2e-6, atol=2e-6)


def problem(num_columns: int = 12) -> torch.Tensor:
    """Logits of student and teacher at 8 columns, and a gradient to pull back."""
    generator = torch.Generator().manual_seed(0)
    return 4 * torch.randn(3, 8, num_columns, generator=generator, dtype=torch.float64)


def reference(student_TV, teacher_TV, cotangent_T, interpolation, temperature):
    """The definition, and its gradient by autograd, in float64."""
    student_TV = student_TV.detach().double().requires_grad_()
    log_q_TV = torch.log_softmax(student_TV / temperature, dim=-1)
    log_p_TV = torch.log_softmax(teacher_TV.double() / temperature, dim=-1)
    m_TV = interpolation * log_p_TV.exp() + (1 - interpolation) * log_q_TV.exp()
    kl_p_T = (log_p_TV.exp() * (log_p_TV - m_TV.log())).sum(-1)
    kl_q_T = (log_q_TV.exp() * (log_q_TV - m_TV.log())).sum(-1)
    weights = {0.0: (1, 0), 1.0: (0, 1)}.get(interpolation, (interpolation, 1 - interpolation))
    divergence_T = weights[0] * kl_p_T + weights[1] * kl_q_T
    (divergence_T * cotangent_T).sum().backward()
    return divergence_T.detach(), student_TV.grad


@pytest.mark.parametrize("interpolation", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_value_and_gradient_are_those_of_autograd(interpolation, dtype):
    student_TV, teacher_TV, noise_TV = problem().to(dtype)
    student_TV.requires_grad_()
    settings = dict(interpolation=interpolation, temperature=2.0)
    divergence_T = teacher_divergence(student_TV, teacher_TV, **settings)
    (gradient_TV,) = torch.autograd.grad((divergence_T * noise_TV[:, 0]).sum(), student_TV)
    expected = reference(student_TV, teacher_TV, noise_TV[:, 0].double(), interpolation, 2.0)
    tolerance = dict(rtol=1e-12, atol=1e-12) if dtype is torch.float64 else F32
    assert_close((divergence_T.double(), gradient_TV.double()), expected, **tolerance)
    assert (divergence_T > 0).all()


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    logits_TV = problem()[0].requires_grad_()
    for interpolation in (0.0, 0.5, 1.0):
        divergence_T = teacher_divergence(
            logits_TV, logits_TV.detach() + 3.0, interpolation=interpolation
        )
        (gradient_TV,) = torch.autograd.grad(divergence_T.sum(), logits_TV)
        assert_close(divergence_T, torch.zeros(8).double())
        assert_close(gradient_TV, torch.zeros_like(gradient_TV))


def test_settings_out_of_range_are_named():
    student_TV, teacher_TV, _ = problem()
    with pytest.raises(ValueError, match=r"interpolation must be in \[0, 1\], got 1.5"):
        teacher_divergence(student_TV, teacher_TV, interpolation=1.5)
    with pytest.raises(ValueError, match="temperature must be > 0, got 0"):
        teacher_divergence(student_TV, teacher_TV, temperature=0)
    with pytest.raises(ValueError, match=r"teacher_logits_Tv \(8, 11\)"):
        teacher_divergence(student_TV, teacher_TV[:, :11])


def test_two_tensor_ranks_agree_with_float64(tmp_path: Path):
    """Two halves of 12 columns; then 5 real columns of 12, so that rank 1 holds padding alone."""
    mp.spawn(_tensor_rank, args=(str(tmp_path / "store"),), nprocs=2)


def _tensor_rank(rank: int, store_path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store_path, 2), rank=rank, world_size=2)
    student_TV, teacher_TV, noise_TV = problem()
    mine = slice(6 * rank, 6 * rank + 6)
    for vocab_size in (12, 5):
        for interpolation in (0.0, 0.3, 1.0):
            student_Tv = student_TV[:, mine].clone().requires_grad_()
            divergence_T = teacher_divergence(
                student_Tv,
                teacher_TV[:, mine],
                interpolation=interpolation,
                temperature=0.7,
                vocab_start=mine.start,
                vocab_size=vocab_size,
                group=dist.group.WORLD,
            )
            (divergence_T * noise_TV[:, 0]).sum().backward()
            expected_T, expected_TV = reference(
                student_TV[:, :vocab_size],
                teacher_TV[:, :vocab_size],
                noise_TV[:, 0],
                interpolation,
                0.7,
            )
            whole_TV = torch.zeros(8, 12, dtype=torch.float64)
            whole_TV[:, :vocab_size] = expected_TV
            assert_close(divergence_T, expected_T, rtol=1e-12, atol=1e-12)
            assert_close(student_Tv.grad, whole_TV[:, mine], rtol=1e-12, atol=1e-12)
    dist.destroy_process_group()
