"""Probabilities among the tokens that a truncation left, on any shard of the vocabulary."""

from __future__ import annotations

import torch
from torch.testing import assert_close

from megatron_r1.algos.sampling_mask import kept_columns
from tests.algos.streams import logprobs_and_entropy

COUNTS_T = torch.tensor([0, 2, 3, 0, 1])
IDS_J = torch.tensor([1, 4, 0, 2, 5, 3])
# Columns predict the next token, the last one that of nothing.
PREDICTED_t = torch.tensor([1, 2, 3, 4, -1])
EXPECTED_tv = torch.tensor(
    [
        [0, 1, 0, 0, 1, 0],
        [1, 0, 1, 0, 0, 1],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
    ]
).bool()


def test_each_shard_has_its_columns():
    for start, stop in ((0, 6), (0, 3), (3, 6), (2, 4)):
        kept_tv = kept_columns(
            COUNTS_T, IDS_J, PREDICTED_t, vocab_start=start, num_columns=stop - start
        )
        assert torch.equal(kept_tv, EXPECTED_tv[:, start:stop])


def test_positions_that_another_rank_holds_are_passed_over():
    held_t = torch.tensor([2, -1, 4])
    kept_tv = kept_columns(COUNTS_T, IDS_J, held_t, vocab_start=0, num_columns=6)
    assert torch.equal(kept_tv, torch.stack([EXPECTED_tv[1], EXPECTED_tv[4], EXPECTED_tv[3]]))


def test_probabilities_add_up_to_one_among_the_kept_and_have_no_gradient_elsewhere():
    logits_TV = torch.randn(5, 6, generator=torch.Generator().manual_seed(0)).requires_grad_()
    kept_TV = kept_columns(COUNTS_T, IDS_J, PREDICTED_t, vocab_start=0, num_columns=6)
    tokens_T = torch.tensor([0, 4, 2, 1, 3])
    logprobs_T, entropy_T = logprobs_and_entropy(
        logits_TV.masked_fill(~kept_TV, -torch.inf), tokens_T, torch.arange(5)
    )
    pair = logits_TV[0, [1, 4]].log_softmax(0)
    assert_close(logprobs_T[1], pair[1])
    assert_close(entropy_T[1], -(pair.exp() * pair).sum().detach())
    assert logprobs_T[4] == 0 and entropy_T[4] == 0  # one token to choose from
    logprobs_T.sum().backward()
    assert (logits_TV.grad[~kept_TV] == 0).all() and logits_TV.grad.isfinite().all()
