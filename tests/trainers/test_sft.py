"""SFT: samples packed into one stream are learned from as if each stood alone."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.load import load_config
from megatron_r1.data.examples import response_row
from megatron_r1.data.packing import pack_best_fit
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.sft import heldout_nll
from megatron_r1.trainers.supervised import own_share

pytestmark = pytest.mark.megatron

PROBLEMS = [
    ("1 + 1 =", "2"),
    ("2 + 3 =", "it is 5, as one counts"),
    ("7 =", "7 7 7"),
    ("9", "nine"),
]


def build(one_rank, capacity: int) -> MegatronStep:
    """A small DeepSeek-V3 with a prediction layer, whose loss counts as much as the main one."""
    config = load_config(
        [
            *("stage=sft", "stage.examples=x", "model=tiny_v3", "model.num_layers=2"),
            *("model.num_mtp_layers=1", "model.mtp_loss=1.0", "model.balance_loss=0"),
            f"parallel.max_tokens_per_microbatch={capacity}",
        ]
    )
    mtp_loss = config.model.mtp_loss
    return MegatronStep(one_rank.policy(config), config.optimizer, mtp_loss=mtp_loss)


def test_packed_samples_have_the_loss_and_gradients_of_samples_apart(one_rank, tokenizer):
    samples = [(response_row(prompt, response, tokenizer),) for prompt, response in PROBLEMS]
    lengths = [row.num_tokens for (row,) in samples]
    longest = max(lengths)
    assert len(pack_best_fit(lengths, 512)) == 1
    found = {}
    for capacity in (512, longest):
        step = build(one_rank, capacity)
        loss_of = step.on_logprobs(sft_loss)
        batch = own_share(samples, step.policy.layout.dp)
        if capacity == longest:  # each sample in a micro-batch of its own
            outputs = []
            gradients: dict[str, torch.Tensor] = {}
            for row in batch.rows:
                alone = type(batch)(rows=(row,))
                outputs += step.accumulate_gradients(alone, loss_of, num_sequences=len(samples))
                for name, weight in step.policy.named_parameters():
                    gradients[name] = gradients.get(name, 0) + weight.main_grad
            assert len(outputs) == len(samples)
        else:
            outputs = step.accumulate_gradients(batch, loss_of, num_sequences=len(samples))
            gradients = {n: w.main_grad.clone() for n, w in step.policy.named_parameters()}
            assert len(outputs) == 1
            # What is measured of held-out samples is what is learned of these, without the weights.
            total, tokens = (float(part) for part in outputs[0]["train/nll"])
            assert heldout_nll(step.policy, samples) == pytest.approx(total / tokens, rel=1e-5)
        loss = sum(float(output["train/loss"][0]) for output in outputs)
        found[capacity] = (loss, gradients, heldout_nll(step.policy, samples))

    (loss, gradients, nll), (loss_apart, gradients_apart, nll_apart) = found.values()
    # Float32 sums in another order.
    assert_close(loss, loss_apart, rtol=1e-5, atol=1e-6)
    for name, gradient in gradients.items():
        assert_close(gradient, gradients_apart[name], rtol=1e-4, atol=1e-6, msg=name)
    assert any(name.startswith("mtp.") and g.abs().sum() > 0 for name, g in gradients.items())
    assert nll == pytest.approx(nll_apart, rel=1e-5)


def test_only_responses_are_learned(one_rank, tokenizer):
    """Each response token and the end of sequence, and no token of a prompt."""
    step = build(one_rank, 512)
    rows = [response_row(prompt, response, tokenizer) for prompt, response in PROBLEMS]
    batch = own_share([(row,) for row in rows], step.policy.layout.dp)
    num_learned = sum(len(tokenizer.encode(response)) + 1 for _, response in PROBLEMS)
    assert sum(int(row.loss_mask_L.sum()) for row in batch.rows) == num_learned
    weights = {row.weight for row in batch.rows}
    assert weights == {1 / num_learned}
