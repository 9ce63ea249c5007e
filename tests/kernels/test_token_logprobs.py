"""Log-probabilities from hidden states: float64 against the definition, Triton beside it.

Float32 rounds at 6e-8, and a logit here is a sum of up to 24 products of size 1: errors of some
1e-6. Gradients are sums of as many.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
from torch.testing import assert_close

from r1_kernels.backend import Backend
from r1_kernels.logit_rows import combine_shards, logit_gradient, logit_statistics
from r1_kernels.reference import token_logprobs as reference
from r1_kernels.token_logprobs import CHUNK_BYTES, _Logits, token_logprobs

F32 = dict(rtol=5e-6, atol=5e-6)
F64 = dict(rtol=1e-12, atol=1e-12)
BACKENDS = [Backend.reference, Backend.triton]


def problem(num_tokens, width, vocab, *, seed=0, scale=1.0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    hidden_TD = torch.randn(num_tokens, width, generator=generator, dtype=torch.float64) * scale
    weight_VD = torch.randn(vocab, width, generator=generator, dtype=torch.float64)
    targets_T = torch.randint(0, vocab, (num_tokens,), generator=generator)
    cotangent_T = torch.randn(num_tokens, generator=generator, dtype=torch.float64)
    return tuple(x.to(device) for x in (hidden_TD, weight_VD, targets_T, cotangent_T))


def run(function, hidden_TD, weight_VD, targets_T, cotangent_T, **more):
    """Outputs and gradients, in the inputs' dtype."""
    hidden_TD, weight_VD = (x.detach().clone().requires_grad_() for x in (hidden_TD, weight_VD))
    logprobs_T, entropy_T = function(hidden_TD, weight_VD, targets_T, **more)
    assert not entropy_T.requires_grad
    (logprobs_T * cotangent_T.to(logprobs_T.dtype)).sum().backward()
    return logprobs_T.detach(), entropy_T, hidden_TD.grad, weight_VD.grad


def test_two_tokens_by_hand():
    # The second of two words has the odds 3 : 1 where the state is 1, and 1 : 1 where it is 0.
    hidden_TD = torch.tensor([[1.0], [0.0]])
    weight_VD = torch.tensor([[0.0], [math.log(3.0)]])
    logprobs_T, entropy_T = token_logprobs(hidden_TD, weight_VD, torch.tensor([0, 1]))
    assert_close(logprobs_T, torch.tensor([math.log(0.25), math.log(0.5)]))
    three_to_one = -0.25 * math.log(0.25) - 0.75 * math.log(0.75)
    assert_close(entropy_T, torch.tensor([three_to_one, math.log(2)]))


# One chunk; rows and columns in many chunks that divide nothing; one row or column at a time.
@pytest.mark.parametrize("chunk_bytes", [1 << 20, 7 * 8 * 30, 1])
@pytest.mark.parametrize("shape", [(1, 3, 5), (7, 24, 130), (13, 5, 67)])
def test_chunks_agree_with_all_logits_at_once_in_float64(shape, chunk_bytes):
    inputs = problem(*shape)
    for more in ({}, dict(temperature=0.7, vocab_size=shape[2] - 2)):
        inputs[2].clamp_(max=shape[2] - 3)
        expected = run(reference.token_logprobs, *inputs, **more)
        actual = run(token_logprobs, *inputs, chunk_bytes=chunk_bytes, **more)
        assert_close(actual, expected, **F64)


def test_chunks_are_whole_tiles_of_a_product_where_there_is_room_for_one():
    def lengths(chunk_bytes: int, across: int, float32: bool = False) -> list[int]:
        how = dict(scale=1.0, num_valid=None, float32=float32, backend=Backend.auto)
        chunks = _Logits(chunk_bytes=chunk_bytes, **how).chunks(600, across, torch.bfloat16)
        return [len(range(600)[rows]) for rows in chunks]

    assert lengths(CHUNK_BYTES, 129280) == [256, 256, 88]  # and not 259
    assert lengths(2 * 10 * 127, 10) == [127, 127, 127, 127, 92]
    assert lengths(2 * 10 * 600, 10) == [512, 88]
    assert lengths(2 * 10 * 600, 10, float32=True) == [256, 256, 88]  # room for 300 of 4 bytes


def test_rows_of_the_head_from_vocab_start_on():
    """Alone, without the ranks that hold the others: 40 rows, the words 20 to 49 and padding."""
    hidden_TD, weight_VD, targets_T, cotangent_T = problem(7, 4, 60)
    targets_T = targets_T % 30 + 20
    actual = run(
        token_logprobs, hidden_TD, weight_VD[20:], targets_T, cotangent_T,
        vocab_start=20, vocab_size=50,
    )  # fmt: skip
    expected = run(
        reference.token_logprobs, hidden_TD, weight_VD[20:], targets_T - 20, cotangent_T,
        vocab_size=30,
    )  # fmt: skip
    assert actual[0].isfinite().all()
    assert_close(actual, expected, **F64)


@pytest.mark.parametrize("step", [9, 1 << 30])
def test_rows_of_logits_may_be_apart(step, device):
    """By more than their width, or so far that the last begins at 2^31; what lies between them
    stays as it is, and memory that nobody touches costs nothing."""
    space = torch.empty(2 * step + 5, dtype=torch.bfloat16, device=device)
    space[5] = 77.0
    logits_cv = space.as_strided((3, 5), (step, 1))
    logits_cv.copy_(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    columns_c = torch.tensor([0, 4, 2], device=device)
    together_cv, results = logits_cv.contiguous(), []
    for rows_cv, backend in ((together_cv, Backend.reference), (logits_cv, Backend.triton)):
        statistics_4c = logit_statistics(rows_cv, columns_c, backend=backend)
        peak_c, log_sum_c, entropy_c, target_c = combine_shards(statistics_4c, None)
        sums = (columns_c, peak_c, log_sum_c, torch.ones(3, device=device))
        grad_cv = logit_gradient(rows_cv, *sums, backend=backend)
        assert grad_cv.data_ptr() == rows_cv.data_ptr()
        results.append([statistics_4c, entropy_c, grad_cv.float()])
    assert_close(results[1][:2], results[0][:2], **F32)
    assert_close(results[1][2], results[0][2], rtol=2**-7, atol=0)
    assert space[5] == 77.0


@pytest.mark.parametrize("shape", [(1, 3, 5), (7, 24, 130), (5, 4, 257), (3, 8, 64)])
def test_triton_agrees_with_float64(shape, device):
    inputs = problem(*shape, device=device)
    inputs[2].clamp_(max=shape[2] - 3)
    single = [x.float() if x.is_floating_point() else x for x in inputs]
    for vocab_size in (None, shape[2] - 2):  # the last two may be padding
        more = dict(temperature=0.7, vocab_size=vocab_size)
        expected = run(reference.token_logprobs, *inputs, **more)
        for chunk_bytes in (1 << 20, shape[2] * 4 * 2):
            actual = run(
                token_logprobs, *single, **more, chunk_bytes=chunk_bytes, backend=Backend.triton
            )
            assert_close([x.double() for x in actual], list(expected), **F32)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_of_narrow_logits_are_rounded_once_and_to_the_nearest(dtype, device):
    generator = torch.Generator().manual_seed(0)
    logits_cv = (3 * torch.randn(5, 130, generator=generator)).to(dtype).to(device)
    columns_c = torch.tensor([0, 129, 64, -1, 127], device=device)
    grad_c = torch.tensor([1.0, -2.0, 0.3, 5.0, 1e-2], device=device)
    peak_c, log_sum_c, entropy_c, _ = combine_shards(
        logit_statistics(logits_cv, columns_c, scale=0.7, backend=Backend.triton), None
    )
    exact_cv = (logits_cv.double() * 0.7).log_softmax(1)
    assert_close((peak_c + log_sum_c).double(), (logits_cv.double() * 0.7).logsumexp(1), **F32)
    assert_close(entropy_c.double(), torch.special.entr(exact_cv.exp()).sum(1), **F32)
    sums = (columns_c, peak_c, log_sum_c, grad_c)
    actual, expected = (
        logit_gradient(logits_cv.clone(), *sums, scale=0.7, backend=backend)
        for backend in (Backend.triton, Backend.reference)
    )
    # Float32 before the rounding differs in its last bits: seldom enough to change the rounding.
    assert (actual != expected).double().mean() < 0.01
    assert_close(actual, expected, rtol=torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits_to_the_last_digits(backend, device):
    """Logits of some 1e4 that are given, and not computed: float32 holds them as they are. Two
    words are close in each row, so that probabilities are not 0 or 1."""
    generator = torch.Generator().manual_seed(0)
    logits_cv = (1e4 * torch.randn(6, 130, generator=generator)).to(device)
    top_c = logits_cv.argmax(dim=1)
    near_c = (top_c + 70) % 130  # in another block
    rows = torch.arange(6, device=device)
    logits_cv[rows, near_c] = logits_cv[rows, top_c] - torch.arange(6, device=device) / 4
    columns_c = torch.where(rows % 2 == 0, near_c, top_c)
    columns_c[5] = (top_c[5] + 3) % 130  # one that is impossible
    exact_cv = logits_cv.double().log_softmax(1)
    statistics_4c = logit_statistics(logits_cv, columns_c, backend=backend)
    peak_c, log_sum_c, entropy_c, target_c = combine_shards(statistics_4c, None)
    assert_close(
        (target_c - peak_c - log_sum_c).double(), exact_cv[rows, columns_c], rtol=1e-6, atol=1e-6
    )
    assert_close(entropy_c.double(), torch.special.entr(exact_cv.exp()).sum(1), rtol=0, atol=1e-6)
    grad_c = torch.linspace(-1, 2, 6, device=device)
    expected_cv = -exact_cv.exp() * grad_c[:, None]
    expected_cv[rows, columns_c] += grad_c
    sums = (columns_c, peak_c, log_sum_c, grad_c)
    actual_cv = logit_gradient(logits_cv.clone(), *sums, backend=backend)
    assert_close(actual_cv.double(), expected_cv.double(), rtol=0, atol=1e-6)
    assert (expected_cv.abs() > 0.1).sum() > 6


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_logits(backend, device):
    # Logits of some 1e4: the peak's word is certain, and all others' exponentials underflow.
    inputs = problem(4, 6, 70, scale=3e3, device=device)
    single = [x.float() if x.is_floating_point() else x for x in inputs]
    expected = run(reference.token_logprobs, *inputs)
    actual = run(token_logprobs, *single, backend=backend)
    assert all(x.isfinite().all() for x in actual)
    # A logit of 1e4 has an error of 1e-3 in float32.
    assert_close(actual[0].double(), expected[0], rtol=1e-6, atol=5e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_impossible_words_and_targets_that_are_not_there(backend, device):
    logits_cv = torch.tensor([[0.0, -torch.inf, 0.0, 9.0], [-torch.inf] * 4, [1.0] * 4])
    logits_cv = logits_cv.to(device)
    columns_c = torch.tensor([2, 0, -5], device=device)
    statistics_4c = logit_statistics(logits_cv, columns_c, num_valid=3, backend=backend)
    peak_c, log_sum_c, entropy_c, target_c = combine_shards(statistics_4c, None)
    # Row 0: two words alike, the fourth is padding. Row 2: three, and the target is elsewhere.
    assert_close((peak_c + log_sum_c)[[0, 2]].cpu(), torch.tensor([math.log(2), 1 + math.log(3)]))
    assert_close(entropy_c[[0, 2]].cpu(), torch.tensor([math.log(2), math.log(3)]))
    assert target_c[0] == 0 and target_c[1] == target_c[2] == -torch.inf
    # Row 1 holds nothing: a sum of 0 under a finite peak, which another shard outweighs.
    assert statistics_4c[0, 1].isfinite() and statistics_4c[1, 1] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_without_a_possible_word_has_no_probabilities(backend, device):
    """All logits -inf, or all columns padding: 0 / 0, as log_softmax has it. Rows beside it are as
    they are alone."""
    logits_cv = torch.tensor([[-torch.inf] * 4, [0.0, 1.0, 2.0, -torch.inf]], device=device)
    columns_c = torch.tensor([1, 2], device=device)
    peak_c, log_sum_c, entropy_c, target_c = combine_shards(
        logit_statistics(logits_cv, columns_c, backend=backend), None
    )
    logprobs_c = target_c - peak_c - log_sum_c
    assert logprobs_c[0].isnan() and entropy_c[0].isnan()
    assert_close(logprobs_c[1].cpu(), torch.tensor([0.0, 1.0, 2.0]).log_softmax(0)[2])
    sums = (columns_c, peak_c, log_sum_c, torch.ones(2, device=device))
    grad_cv = logit_gradient(logits_cv.clone(), *sums, backend=backend)
    assert grad_cv[0].isnan().all() and grad_cv[1].isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_tokens_and_one_word(backend, device):
    empty = problem(0, 3, 5, device=device)
    single = [x.float() if x.is_floating_point() else x for x in empty]
    logprobs_T, entropy_T, grad_TD, grad_VD = run(token_logprobs, *single, backend=backend)
    assert logprobs_T.shape == entropy_T.shape == (0,) and grad_TD.shape == (0, 3)
    assert grad_VD.shape == (5, 3) and not grad_VD.any()
    certain = [x.float() if x.is_floating_point() else x for x in problem(2, 3, 1, device=device)]
    logprobs_T, entropy_T, grad_TD, _ = run(token_logprobs, *certain, backend=backend)
    assert not logprobs_T.any() and not entropy_T.any() and not grad_TD.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_add_up_to_the_whole_vocabulary(backend, device):
    hidden_TD, weight_VD, targets_T, _ = problem(6, 5, 40, scale=3.0, device=device)
    expected_T, expected_entropy_T = reference.token_logprobs(hidden_TD, weight_VD, targets_T)
    logits_TV = (hidden_TD @ weight_VD.T).float()
    # A shard of padding alone at the end, as where the vocabulary is rounded up.
    logits_TV = torch.cat([logits_TV, torch.full((6, 8), 77.0, device=device)], dim=1)
    bounds = [(0, 16), (16, 40), (40, 48)]
    shards = [
        logit_statistics(
            logits_TV[:, start:stop], targets_T - start, num_valid=40 - start, backend=backend
        )
        for start, stop in bounds
    ]
    for peak_T, log_sum_T, entropy_T, target_T in combined(shards):  # on each rank the same
        assert_close((target_T - peak_T - log_sum_T).double(), expected_T.cpu(), **F32)
        assert_close(entropy_T.double(), expected_entropy_T.cpu(), **F32)


def combined(shards: list[torch.Tensor]) -> list[tuple[torch.Tensor, ...]]:
    """`combine_shards` on as many ranks, which are threads here."""
    store = dist.HashStore()

    def rank(number: int) -> tuple[torch.Tensor, ...]:
        group = dist.ProcessGroupGloo(store, number, len(shards), timedelta(seconds=60))
        return combine_shards(shards[number].cpu(), group)

    with ThreadPoolExecutor(len(shards)) as ranks:
        return list(ranks.map(rank, range(len(shards))))


def test_bfloat16_with_float32_logits_is_as_good_as_float32(device):
    hidden_TD, weight_VD, targets_T, cotangent_T = problem(9, 24, 100, device=device)
    hidden_TD, weight_VD = hidden_TD.bfloat16(), weight_VD.bfloat16()
    exact = reference.token_logprobs(hidden_TD.double(), weight_VD.double(), targets_T)
    kept, _, grad_TD, _ = run(
        token_logprobs, hidden_TD, weight_VD, targets_T, cotangent_T, float32_logits=True
    )
    rounded, *_ = run(token_logprobs, hidden_TD, weight_VD, targets_T, cotangent_T)
    assert kept.dtype == torch.float32 and grad_TD.dtype == torch.bfloat16
    assert_close(kept.double(), exact[0], **F32)
    # Logits near 8 that are rounded to bfloat16 are off by up to 2^-6.
    assert (rounded.double() - exact[0]).abs().max() > 1e-3


def test_what_is_frozen_gets_no_gradient():
    hidden_TD, weight_VD, targets_T, _ = problem(7, 4, 9)
    for chunk_bytes in (1 << 20, 100):
        hidden_TD.requires_grad_(True).grad = None
        logprobs_T, _ = token_logprobs(hidden_TD, weight_VD, targets_T, chunk_bytes=chunk_bytes)
        logprobs_T.sum().backward()
        expected, _ = reference.token_logprobs(hidden_TD, weight_VD, targets_T)
        assert_close(hidden_TD.grad, torch.autograd.grad(expected.sum(), hidden_TD)[0], **F64)
        assert weight_VD.grad is None


def test_mistakes_are_named():
    hidden_TD, weight_VD, targets_T, _ = problem(3, 4, 5)
    for temperature in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=f"temperature must be > 0, got {temperature}"):
            token_logprobs(hidden_TD, weight_VD, targets_T, temperature=temperature)
    for dtype in (torch.float32, torch.int32, torch.bool):
        with pytest.raises(ValueError, match=rf"targets_T must be torch.int64, got {dtype}"):
            token_logprobs(hidden_TD, weight_VD, targets_T.to(dtype))
    with pytest.raises(ValueError, match=r"hidden_TD .* torch.int64.* do not fit together"):
        token_logprobs(hidden_TD.long(), weight_VD.long(), targets_T)
    with pytest.raises(ValueError, match=r"weight_vD \[0, 4\]"):
        token_logprobs(hidden_TD, weight_VD[:0], targets_T)
    with pytest.raises(ValueError, match=r"hidden_TD \[3, 4\].*weight_vD \[5, 3\]"):
        token_logprobs(hidden_TD, weight_VD[:, :3], targets_T)
    with pytest.raises(ValueError, match="float64 and targets_T"):
        token_logprobs(hidden_TD.float(), weight_VD, targets_T)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_do_not_fit_are_refused_before_they_are_read(backend, device):
    logits_Tv, columns_T = torch.zeros(3, 5, device=device), torch.arange(3, device=device)
    row_T = torch.zeros(3, device=device)
    how = dict(backend=backend)
    with pytest.raises(ValueError, match=r"'columns_T': \[2\].*shape \[3, 5\]"):
        logit_statistics(logits_Tv, columns_T[:2], **how)
    with pytest.raises(ValueError, match=r"contiguous rows, .*strides \(1, 5\)"):
        logit_statistics(logits_Tv.T, torch.arange(5, device=device), **how)
    with pytest.raises(ValueError, match=r"at least one column, .*\[3, 0\]"):
        logit_statistics(logits_Tv[:, :0], columns_T, **how)
    with pytest.raises(ValueError, match="columns_T must be torch.int64, got torch.float32"):
        logit_statistics(logits_Tv, row_T, **how)
    for wrong in ("peak_T", "log_sum_T", "grad_T"):
        rows = dict(peak_T=row_T, log_sum_T=row_T, grad_T=row_T) | {wrong: row_T[:2]}
        with pytest.raises(ValueError, match=rf"'{wrong}': \[2\]"):
            logit_gradient(logits_Tv, columns_T, **rows, **how)
