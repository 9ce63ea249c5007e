"""Weight sets are copies, stand in for the policy's weights, and leave them as they were."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.load import load_config
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.models.policy import Policy
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import TrainBatch, TrainRow
from tests.models.builders import logits_of, random_tokens

pytestmark = pytest.mark.megatron

LENGTHS = (12, 5)


@pytest.fixture
def policy(one_rank) -> Policy:
    return one_rank.policy(load_config(["model=tiny_v3", "rollout.max_response_tokens=64"]))


def tensors(policy: Policy) -> dict[str, Tensor]:
    """All that a set holds: parameters and expert biases."""
    biases = {n: b for n, b in policy.named_buffers() if n.endswith("expert_bias")}
    assert len(biases) == 3
    return dict(policy.named_parameters()) | biases


@torch.no_grad()
def shift(policy: Policy, amount: float) -> None:
    """Add a ramp to every tensor, so that router and norms change what they do."""
    for tensor in tensors(policy).values():
        tensor += amount * torch.linspace(-1, 1, tensor.shape[-1], device=tensor.device)


def snapshot(policy: Policy) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in tensors(policy).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def logits(policy: Policy) -> Tensor:
    with policy.inference():
        return logits_of(policy, random_tokens(sum(LENGTHS)), LENGTHS)


def test_a_set_gives_the_logits_of_the_weights_that_it_was_stored_from(policy):
    bank = WeightBank(policy)
    stored_TV = logits(policy)
    bank.store("reference")
    shift(policy, 0.05)
    own_TV = logits(policy)
    with bank.use("reference") as stand_in:
        assert torch.equal(logits(stand_in), stored_TV)
    assert torch.equal(logits(policy), own_TV)
    assert (own_TV - stored_TV).abs().max() > 0.1


def test_weights_come_back_bit_for_bit(policy):
    bank = WeightBank(policy)
    stored = snapshot(policy)
    bank.store("reference")
    shift(policy, 0.05)
    own = snapshot(policy)
    with bank.use("reference"):
        assert same(snapshot(policy), stored)
    assert same(snapshot(policy), own)


def test_weights_come_back_when_the_block_raises(policy):
    bank = WeightBank(policy)
    bank.store("reference")
    shift(policy, 0.05)
    own = snapshot(policy)
    with pytest.raises(ZeroDivisionError):
        with bank.use("reference"):
            raise ZeroDivisionError
    assert same(snapshot(policy), own)


def test_a_set_is_a_copy_until_it_is_stored_again(policy):
    bank = WeightBank(policy)
    assert "reference" not in bank
    bank.store("reference")
    first = snapshot(policy)
    shift(policy, 0.05)
    with bank.use("reference"):
        assert same(snapshot(policy), first)
    second = snapshot(policy)
    bank.store("reference")
    with bank.use("reference"):
        assert same(snapshot(policy), second)


def test_the_expert_bias_is_part_of_a_set(policy):
    # +10 on expert 0 sends every token to it; without it some go elsewhere.
    router = policy.chunks[0].decoder.layers[1].mlp.router
    hidden = torch.randn(40, 1, 128, generator=torch.Generator().manual_seed(0))
    hidden = hidden.to(policy.host.device)
    bank = WeightBank(policy)
    bank.store("reference")
    router.expert_bias[0] = 10.0

    def share_of_expert_0() -> float:
        with policy.inference():
            _, routing_map = router(hidden)
        return float(routing_map[:, 0].float().mean())

    assert share_of_expert_0() == 1.0
    with bank.use("reference"):
        assert share_of_expert_0() < 0.7
    assert share_of_expert_0() == 1.0


def test_training_does_not_notice_that_a_set_was_used(policy, one_rank):
    # The optimizer keeps weights in one buffer, of which the parameters are views.
    other = one_rank.policy(load_config(["model=tiny_v3", "rollout.max_response_tokens=64"]))
    tokens_L = random_tokens(20)
    row = TrainRow(tokens_L=tokens_L, loss_mask_L=torch.arange(20) > 0, weight=1 / 19)
    for each, uses_set in ((policy, True), (other, False)):
        step, bank = MegatronStep(each, OptimizerConfig()), WeightBank(each)
        bank.store("reference")
        for _ in range(2):
            if uses_set:
                with bank.use("reference"):
                    logits(each)
            step.train_step(
                TrainBatch(rows=(row,)), step.on_logprobs(sft_loss), lr=1e-3, num_sequences=1
            )
    assert same(snapshot(policy), snapshot(other))
