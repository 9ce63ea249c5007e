from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.sft import sft_loss
from megatron_r1.data.packing import build_micro_batch
from megatron_r1.types import TrainRow


def test_loss_is_the_weighted_negative_log_likelihood_of_the_response():
    row = TrainRow(
        tokens_L=torch.arange(3), loss_mask_L=torch.tensor([False, True, True]), weight=0.25
    )
    micro = build_micro_batch([row], pad_to_multiple=4, pad_token=0)
    logprobs_T = torch.tensor([0.0, -1.0, -2.0, -torch.inf], requires_grad=True)
    output = sft_loss(logprobs_T, micro)
    output.loss.backward()
    # 0.25 * (1 + 2); the padding's log-probability is nobody's business.
    assert_close(output.loss, torch.tensor(0.75))
    assert_close(logprobs_T.grad, torch.tensor([0.0, -0.25, -0.25, 0.0]))
    assert output.metrics["train/nll"] == (3.0, 2.0)


def test_an_empty_micro_batch_gives_zero_and_a_backward_pass():
    micro = build_micro_batch([], pad_to_multiple=4, pad_token=0)
    logprobs_T = torch.zeros(4, requires_grad=True)
    output = sft_loss(logprobs_T, micro)
    output.loss.backward()
    assert output.loss == 0
    assert (logprobs_T.grad == 0).all()
    assert output.metrics["train/nll"] == (0.0, 0.0)


def test_mismatched_shapes_are_named():
    micro = build_micro_batch([], pad_to_multiple=4, pad_token=0)
    with pytest.raises(ValueError, match=r"logprobs_T \(3,\), loss_mask_T \(4,\)"):
        sft_loss(torch.zeros(3), micro)
