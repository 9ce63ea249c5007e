"""Rows of experts by hand, and Triton bit for bit beside the definition."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from r1_kernels.backend import Backend
from r1_kernels.moe_permute import permute, place, unpermute


def problem(num_tokens, num_copies, num_experts, width, *, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores_TE = torch.rand(num_tokens, num_experts, generator=generator)
    experts_TK = scores_TE.topk(num_copies, dim=1).indices
    # Some copies go nowhere, and expert 1 gets none.
    dropped_TK = torch.rand(experts_TK.shape, generator=generator) < 0.2
    experts_TK = experts_TK.masked_fill(dropped_TK | (experts_TK == 1), -1)
    tokens_TD = torch.randn(num_tokens, width, generator=generator)
    weights_TK = torch.rand(num_tokens, num_copies, generator=generator)
    return experts_TK.to(device), tokens_TD.to(device), weights_TK.to(device)


def test_three_tokens_by_hand():
    # Expert 0: tokens 0 and 2; 1: none; 2: tokens 0, 1, 2. Tiles of 2 rows make 2 + 0 + 4.
    experts_TK = torch.tensor([[2, 0], [2, -1], [0, 2]])
    placement = place(experts_TK, 3, multiple=2)
    assert placement.rows_per_expert_E.tolist() == [2, 0, 4]
    assert placement.rows_TK.tolist() == [[2, 0], [3, -1], [1, 4]]
    assert placement.copies_M.tolist() == [1, 4, 0, 2, 5, -1]
    rows_MD = permute(torch.tensor([[1.0], [2.0], [3.0]]), placement)
    assert rows_MD.flatten().tolist() == [1, 3, 1, 2, 3, 0]
    weights_TK = torch.tensor([[0.5, 2.0], [4.0, 100.0], [1.0, 10.0]])
    tokens_TD = unpermute(
        torch.tensor([[1.0], [3.0], [1.0], [2.0], [3.0], [99.0]]), placement, weights_TK
    )
    assert tokens_TD.flatten().tolist() == [0.5 + 2, 8, 3 + 30]


@pytest.mark.parametrize(
    "num_tokens,num_copies,num_experts,width",
    [(1, 1, 2, 1), (9, 3, 5, 33), (20, 2, 4, 16), (0, 2, 4, 8)],
)
@pytest.mark.parametrize("multiple", [1, 4])
def test_triton_agrees_with_indexing(num_tokens, num_copies, num_experts, width, multiple, device):
    experts_TK, tokens_TD, weights_TK = problem(
        num_tokens, num_copies, num_experts, width, device=device
    )
    placement = place(experts_TK, num_experts, multiple=multiple)
    assert (placement.rows_per_expert_E % multiple == 0).all()
    results = []
    for backend in (Backend.reference, Backend.triton):
        tokens, weights = (x.clone().requires_grad_() for x in (tokens_TD, weights_TK))
        rows_MD = permute(tokens, placement, backend=backend)
        out_TD = unpermute(rows_MD * rows_MD.detach(), placement, weights, backend=backend)
        plain_TD = unpermute(rows_MD, placement, backend=backend)
        ((out_TD * tokens_TD).sum() + plain_TD.square().sum()).backward()
        results.append(
            (rows_MD.detach(), out_TD.detach(), plain_TD.detach(), tokens.grad, weights.grad)
        )
    # Copies are exact; sums of up to 3 are taken in float32 in one order or another.
    assert_close(results[1][0], results[0][0], rtol=0, atol=0)
    assert_close(results[1][1:], results[0][1:], rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize(
    "laid",
    [lambda x: torch.nn.functional.pad(x, (0, 7))[:, :-7], lambda x: x.T.contiguous().T],
    ids=["rows apart", "transposed"],
)
def test_rows_may_be_apart_and_transposed(laid, device):
    experts_TK, tokens_TD, weights_TK = problem(9, 3, 5, 33, device=device)
    placement = place(experts_TK, 5, multiple=4)
    generator = torch.Generator().manual_seed(1)
    rows_MD, grad_MD = torch.randn(2, placement.num_rows, 33, generator=generator).to(device)
    results = []
    for backend in (Backend.reference, Backend.triton):
        laid_out = [laid(x).requires_grad_() for x in (tokens_TD, rows_MD, weights_TK)]
        tokens, rows, weights = laid_out
        assert tokens.stride() != tokens_TD.stride()
        there_MD = permute(tokens, placement, backend=backend)
        back_TD = unpermute(rows, placement, weights, backend=backend)
        grads = torch.autograd.grad([there_MD, back_TD], laid_out, [laid(grad_MD), laid(tokens_TD)])
        results.append([there_MD.detach(), back_TD.detach(), *grads])
    assert_close(results[1], results[0], rtol=2e-6, atol=1e-5)


def test_triton_rounds_bfloat16_as_indexing_does(device):
    """Sums are taken in float32 and rounded once: with two copies, bit for bit."""
    experts_TK, tokens_TD, weights_TK = problem(40, 2, 5, 33, device=device)
    placement = place(experts_TK, 5, multiple=4)
    results = []
    for backend in (Backend.reference, Backend.triton):
        tokens, weights = tokens_TD.bfloat16().requires_grad_(), weights_TK.clone().requires_grad_()
        rows_MD = permute(tokens, placement, backend=backend)
        out_TD = unpermute(rows_MD, placement, weights, backend=backend)
        (out_TD.float() * tokens_TD).sum().backward()
        results.append((rows_MD.detach(), out_TD.detach(), tokens.grad, weights.grad))
    reference, triton = results
    assert all(x.dtype is torch.bfloat16 for x in triton[:3])
    for actual, expected in zip(triton[:2], reference[:2], strict=True):
        assert torch.equal(actual, expected)
    # Gradients of tokens come by way of the rows', which are rounded, too.
    assert (triton[2] != reference[2]).double().mean() < 0.01
    assert_close(triton[2], reference[2], rtol=2**-7, atol=2**-9)
    assert_close(triton[3], reference[3], rtol=2e-6, atol=1e-5)


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_the_weight_of_a_copy_that_goes_nowhere_does_not_reach_padding(backend, device):
    # Rows of tiles of 4: expert 0 holds copies 1 and 2, expert 1 copy 3. Copy 0 goes nowhere.
    placement = place(torch.tensor([[-1, 0], [0, 1]], device=device), 2, multiple=4)
    weights_TK = torch.tensor([[float("nan"), 2.0], [3.0, 5.0]], device=device)
    rows_MD = torch.ones(8, 3, device=device, requires_grad=True)
    unpermute(rows_MD, placement, weights_TK, backend=backend).sum().backward()
    assert rows_MD.grad[:, 0].tolist() == [2, 3, 0, 0, 5, 0, 0, 0]


def test_the_way_back_undoes_the_way_there():
    experts_TK, tokens_TD, _ = problem(50, 3, 6, 7)
    placement = place(experts_TK, 6, multiple=8)
    copies_T1 = (experts_TK >= 0).sum(dim=1, keepdim=True)
    assert_close(unpermute(permute(tokens_TD, placement), placement), tokens_TD * copies_T1)
    # Rows of one expert are its tokens, in their order.
    starts = placement.rows_per_expert_E.cumsum(0) - placement.rows_per_expert_E
    for expert, start in enumerate(starts.tolist()):
        mine = (experts_TK == expert).any(dim=1)
        rows = permute(tokens_TD, placement)[start : start + int(mine.sum())]
        assert torch.equal(rows, tokens_TD[mine])


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"experts must be in \[-1, 3\), got 0 to 3"):
        place(torch.tensor([[0, 3]]), 3)
    with pytest.raises(ValueError, match=r"experts must be int64, got torch.int32"):
        place(torch.tensor([[0, 1]], dtype=torch.int32), 3)
    with pytest.raises(ValueError, match=r"experts must be a matrix, .* got shape \[2\]"):
        place(torch.tensor([0, 1]), 2)
    for multiple in (0, 1.5, 2.0):
        with pytest.raises(ValueError, match=f"integer >= 1, got {multiple}"):
            place(torch.tensor([[0], [1]]), 2, multiple=multiple)
    placement = place(torch.tensor([[0], [1]]), 2)
    with pytest.raises(ValueError, match="the placement 2 rows"):
        permute(torch.zeros(3, 4), placement)
