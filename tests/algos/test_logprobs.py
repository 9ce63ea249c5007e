"""Token log-probabilities and entropies against float64, padded vocabularies and two ranks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.testing import assert_close

from megatron_r1.algos.logprobs import (
    CHUNK_ELEMENTS,
    align_to_tokens,
    next_tokens,
    target_logprobs,
)
from tests.algos.streams import logprobs_and_entropy, token_logprobs

# Float32 rounds at 6e-8; logits up to about 10 and sums of 12 exponentials lose a digit or so.
F32 = dict(rtol=2e-6, atol=2e-6)


def test_probability_of_a_token_comes_from_the_logits_before_it():
    # Two sequences, [0, 1] and [1, 0, 0]. The logits at column t give token 1 the odds 3 : 1.
    logits_TV = torch.tensor([[0.0, math.log(3.0)]]).repeat(5, 1)
    tokens_T = torch.tensor([0, 1, 1, 0, 0])
    positions_T = torch.tensor([0, 1, 0, 1, 2])
    expected_T = torch.tensor([0.0, math.log(0.75), 0.0, math.log(0.25), math.log(0.25)])
    assert_close(token_logprobs(logits_TV, tokens_T, positions_T), expected_T)


def test_only_the_logits_just_before_a_token_matter_to_it():
    logits_TV = torch.zeros(4, 3, requires_grad=True)
    logprobs_T = token_logprobs(logits_TV, torch.tensor([0, 1, 2, 0]), torch.tensor([0, 1, 0, 1]))
    logprobs_T[3].backward()
    # Uniform over three: 1[v = 0] - 1/3 in row 2, nothing elsewhere.
    expected_TV = torch.zeros(4, 3)
    expected_TV[2] = torch.tensor([2 / 3, -1 / 3, -1 / 3])
    assert_close(logits_TV.grad, expected_TV)


def test_entropy_is_that_of_the_distribution_the_token_was_drawn_from():
    logits_TV = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, -torch.inf, -torch.inf], [9.0] * 4])
    _, entropy_T = logprobs_and_entropy(logits_TV, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
    # Four equal tokens, then two: log 4 and log 2. The last row predicts nothing that is here.
    assert_close(entropy_T, torch.tensor([0.0, math.log(4), math.log(2)]))


def test_temperature_divides_the_logits():
    logits_TV = torch.tensor([[0.0, 2 * math.log(3.0)], [0.0, 0.0]])
    logprobs_T = token_logprobs(
        logits_TV, torch.tensor([0, 1]), torch.tensor([0, 1]), temperature=2.0
    )
    assert_close(logprobs_T[1], torch.tensor(math.log(0.75)))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_forward_and_backward_agree_with_log_softmax_in_float64(temperature):
    logits_TV, tokens_T, positions_T, cotangent_T = _problem()
    logits_TV.requires_grad_()
    logprobs_T, entropy_T = logprobs_and_entropy(
        logits_TV, tokens_T, positions_T, temperature=temperature
    )
    (logprobs_T * cotangent_T).sum().backward()
    expected_T, expected_entropy_T, expected_grad_TV = _reference(
        logits_TV, tokens_T, positions_T, cotangent_T, temperature
    )
    assert not entropy_T.requires_grad
    assert_close(logprobs_T.double(), expected_T, **F32)
    assert_close(entropy_T.double(), expected_entropy_T, **F32)
    assert_close(logits_TV.grad.double(), expected_grad_TV, **F32)


def test_rows_worked_on_in_several_chunks_agree_with_one_row_at_a_time():
    # Two rows of 3/8 of a chunk fit into it, so five are worked on as 2 + 2 + 1.
    num_columns = CHUNK_ELEMENTS * 3 // 8
    logits_TV = torch.randn(5, num_columns, generator=torch.Generator().manual_seed(2))
    logits_TV.requires_grad_()
    targets_T = torch.tensor([0, 1, num_columns - 1, 7, 8])
    logprobs_T, entropy_T = target_logprobs(logits_TV, targets_T)
    (gradient_TV,) = torch.autograd.grad(logprobs_T.sum(), logits_TV)
    for t, target in enumerate(targets_T):
        log_p_V = logits_TV.detach()[t].double().log_softmax(0)
        p_V = log_p_V.exp()
        assert_close(logprobs_T[t].double(), log_p_V[target], **F32)
        assert_close(entropy_T[t].double(), -(p_V @ log_p_V), **F32)
        expected_V = -p_V
        expected_V[target] += 1
        assert_close(gradient_TV[t].double(), expected_V, rtol=1e-5, atol=1e-9)


def test_large_logits_overflow_nothing():
    logits_TV = torch.tensor([[1e4, 1e4 - 1.0], [0.0, 0.0]], requires_grad=True)
    logprobs_T = token_logprobs(logits_TV, torch.tensor([0, 1]), torch.tensor([0, 1]))
    logprobs_T.sum().backward()
    # The other token is e times as likely: p = 1 / (1 + e) = 0.268941.
    assert_close(logprobs_T[1], torch.tensor(math.log(0.268941)), rtol=1e-5, atol=0)
    assert_close(logits_TV.grad[0], torch.tensor([-0.731059, 0.731059]), rtol=1e-5, atol=0)


def test_bfloat16_logits_give_float32_logprobs_and_a_bfloat16_gradient():
    logits_TV, tokens_T, positions_T, _ = _problem()
    rounded_TV = logits_TV.bfloat16().requires_grad_()
    logprobs_T = token_logprobs(rounded_TV, tokens_T, positions_T)
    logprobs_T.sum().backward()
    assert logprobs_T.dtype == torch.float32
    assert rounded_TV.grad.dtype == torch.bfloat16
    # The rounding of the logits is the only loss.
    assert_close(logprobs_T, token_logprobs(rounded_TV.float(), tokens_T, positions_T))


@pytest.mark.parametrize("padding", ["vocab_size", "minus_inf"])
def test_padded_columns_change_nothing_and_get_no_gradient(padding):
    logits_TV, tokens_T, positions_T, cotangent_T = _problem()
    exact_TV = logits_TV.clone().requires_grad_()
    expected = logprobs_and_entropy(exact_TV, tokens_T, positions_T)
    (expected[0] * cotangent_T).sum().backward()

    fill = 50.0 if padding == "vocab_size" else -torch.inf
    padded_TV = torch.cat([logits_TV, torch.full((len(tokens_T), 4), fill)], dim=1)
    padded_TV.requires_grad_()
    vocab_size = logits_TV.shape[1] if padding == "vocab_size" else None
    actual = logprobs_and_entropy(padded_TV, tokens_T, positions_T, vocab_size=vocab_size)
    (actual[0] * cotangent_T).sum().backward()

    assert_close(actual, expected)
    assert_close(padded_TV.grad[:, :-4], exact_TV.grad)
    assert (padded_TV.grad[:, -4:] == 0).all()


def test_a_token_outside_the_vocabulary_is_impossible_rather_than_wrong():
    logits_TV = torch.zeros(2, 3)
    logprobs_T = token_logprobs(logits_TV, torch.tensor([0, 3]), torch.tensor([0, 1]))
    assert logprobs_T[1] == -torch.inf


def test_a_stream_cut_between_ranks_gives_what_the_whole_stream_gives():
    # As context parallelism does: shift, slice, take log-probabilities, gather, align.
    logits_TV, tokens_T, positions_T, _ = _problem()
    targets_T = next_tokens(tokens_T)
    parts = [target_logprobs(logits_TV[s], targets_T[s])[0] for s in (slice(0, 3), slice(3, 8))]
    assert_close(
        align_to_tokens(torch.cat(parts), positions_T),
        token_logprobs(logits_TV, tokens_T, positions_T),
    )


def test_mismatched_shapes_and_temperatures_are_named():
    logits_TV, tokens_T, positions_T, _ = _problem()
    with pytest.raises(ValueError, match=r"targets_T \(7,\), .*logits_Tv \(8,\)"):
        target_logprobs(logits_TV, tokens_T[:7])
    with pytest.raises(ValueError, match="temperature must be > 0, got 0.0"):
        token_logprobs(logits_TV, tokens_T, positions_T, temperature=0.0)


def test_two_tensor_ranks_agree_with_one_and_with_float64(tmp_path: Path):
    """Two halves of 12 columns; then 5 real columns of 12, so that rank 1 holds padding alone."""
    mp.spawn(_tensor_rank, args=(str(tmp_path / "store"),), nprocs=2)


def _tensor_rank(rank: int, store_path: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store_path, 2), rank=rank, world_size=2)
    logits_TV, tokens_T, positions_T, cotangent_T = _problem()
    mine = slice(6 * rank, 6 * rank + 6)
    for vocab_size in (12, 5):
        real_tokens_T = tokens_T % vocab_size
        logits_Tv = logits_TV[:, mine].clone().requires_grad_()
        logprobs_T, entropy_T = logprobs_and_entropy(
            logits_Tv,
            real_tokens_T,
            positions_T,
            temperature=0.7,
            vocab_start=mine.start,
            vocab_size=vocab_size,
            group=dist.group.WORLD,
        )
        (logprobs_T * cotangent_T).sum().backward()

        whole_TV = logits_TV.clone().requires_grad_()
        one_rank = logprobs_and_entropy(
            whole_TV, real_tokens_T, positions_T, temperature=0.7, vocab_size=vocab_size
        )
        (one_rank[0] * cotangent_T).sum().backward()
        assert_close((logprobs_T, entropy_T), one_rank, **F32)
        assert_close(logits_Tv.grad, whole_TV.grad[:, mine], **F32)

        masked_TV = logits_TV.clone()
        masked_TV[:, vocab_size:] = -torch.inf
        expected_T, expected_entropy_T, expected_grad_TV = _reference(
            masked_TV, real_tokens_T, positions_T, cotangent_T, temperature=0.7
        )
        assert_close(logprobs_T.double(), expected_T, **F32)
        assert_close(entropy_T.double(), expected_entropy_T, **F32)
        assert_close(logits_Tv.grad.double(), expected_grad_TV[:, mine], **F32)
    dist.destroy_process_group()


def _problem() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sequences of 5 and 3 tokens out of a vocabulary of 12, and a gradient to pull back."""
    generator = torch.Generator().manual_seed(0)
    logits_TV = 4 * torch.randn(8, 12, generator=generator)
    tokens_T = torch.randint(12, (8,), generator=generator)
    positions_T = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2])
    return logits_TV, tokens_T, positions_T, torch.randn(8, generator=generator)


def _reference(logits_TV, tokens_T, positions_T, cotangent_T, temperature):
    """The definition, one token at a time, in float64."""
    logits_TV = logits_TV.detach().double().requires_grad_()
    log_p_TV = torch.log_softmax(logits_TV / temperature, dim=1)
    zero = torch.zeros((), dtype=torch.float64)
    drawn = [t for t in range(len(tokens_T)) if positions_T[t] > 0]
    logprobs_T = torch.stack(
        [log_p_TV[t - 1, tokens_T[t]] if t in drawn else zero for t in range(len(tokens_T))]
    )
    (logprobs_T * cotangent_T.double()).sum().backward()
    entropy_TV = torch.special.entr(log_p_TV.detach().exp()).sum(dim=1)
    entropy_T = torch.stack(
        [entropy_TV[t - 1] if t in drawn else zero for t in range(len(tokens_T))]
    )
    return logprobs_T.detach(), entropy_T, logits_TV.grad


def test_the_plain_way_is_plain_pytorch_whatever_computes_elsewhere(monkeypatch):
    """Triton's kernels have float32 alone: with them float64 would not come out."""
    monkeypatch.setenv("R1_KERNELS", "triton")
    generator = torch.Generator().manual_seed(0)
    logits_TV = torch.randn(3, 70, dtype=torch.float64, generator=generator).requires_grad_()
    logprobs_T, _ = target_logprobs(logits_TV, torch.tensor([0, 69, 5]))
    expected_T = logits_TV.log_softmax(1)[range(3), [0, 69, 5]]
    assert_close(logprobs_T, expected_T, rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad(x.sum(), logits_TV)[0] for x in (logprobs_T, expected_T)]
    assert_close(*gradients, rtol=1e-13, atol=1e-13)


def test_no_tokens_have_no_logprobs():
    logits_TV = torch.zeros(0, 5, requires_grad=True)
    logprobs_T, entropy_T = target_logprobs(logits_TV, torch.zeros(0, dtype=torch.int64))
    logprobs_T.sum().backward()
    assert logprobs_T.shape == entropy_T.shape == (0,) and logits_TV.grad.shape == (0, 5)
