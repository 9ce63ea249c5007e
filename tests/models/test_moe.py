"""The router over packed sequences: balance loss, load counts, and the bias that evens them out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from megatron.core.transformer.moe.moe_utils import MoEAuxLossAutoScaler
from torch import Tensor

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.load import load_config
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.models.moe import StreamRouter
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import TrainBatch, TrainRow
from tests.models.builders import random_tokens, stream_of
from tests.models.families import load_family

pytestmark = pytest.mark.megatron

ALPHA, NUM_EXPERTS, TOP_K, BIAS_RATE = 0.1, 8, 2, 0.01


@pytest.fixture
def policy(one_rank):
    overrides = [f"model.balance_loss={ALPHA}", f"model.bias_update_rate={BIAS_RATE}"]
    overrides.append("parallel.max_tokens_per_microbatch=40")
    config = load_config(["model=tiny_v3", "rollout.max_response_tokens=64", *overrides])
    return one_rank.policy(config)


@pytest.fixture
def router(policy) -> StreamRouter:
    # Megatron's schedule does this before each backward pass; here there is none.
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1, device=policy.host.device))
    return policy.chunks[0].decoder.layers[1].mlp.router.train()


def random_hidden(num_tokens: int, router: StreamRouter) -> Tensor:
    """hidden_TD; the bias towards some directions makes loads and scores uneven."""
    generator = torch.Generator().manual_seed(0)
    hidden_TD = torch.randn(num_tokens, 128, generator=generator) + torch.linspace(-1, 1, 128)
    return hidden_TD.to(router.weight.device)


def balance_gradient(
    router: StreamRouter, hidden_TD: Tensor, lengths, *, num_padding: int = 0, scale: float
) -> Tensor:
    """Gradient of the balance loss alone, with respect to the router's weight."""
    router.stream = stream_of(
        lengths, num_padding=num_padding, balance_scale=scale, device=hidden_TD.device
    )
    probs_TE, _ = router(hidden_TD[:, None])
    (gradient,) = torch.autograd.grad((0 * probs_TE).sum(), router.weight)
    return gradient


def balance_loss_of_one_sequence(hidden_TD: Tensor, weight_ED: Tensor) -> Tensor:
    """V3 report (arXiv:2412.19437) Eq. 17 to 20, in the paper's own symbols."""
    s_TE = torch.sigmoid(hidden_TD @ weight_ED.T)
    length = s_TE.shape[0]
    chosen_TK = s_TE.topk(TOP_K, dim=1).indices
    loss = 0
    for i in range(NUM_EXPERTS):
        f_i = NUM_EXPERTS / (TOP_K * length) * (chosen_TK == i).sum()
        P_i = sum(s_TE[t, i] / s_TE[t].sum() for t in range(length)) / length
        loss = loss + f_i * P_i
    return ALPHA * loss


def test_balance_loss_is_the_reports_for_each_sequence(router):
    lengths = (5, 12, 1)
    hidden_TD = random_hidden(sum(lengths), router)
    gradient = balance_gradient(router, hidden_TD, lengths, scale=1 / 3)
    weight_ED = router.weight.detach().double().requires_grad_()
    mean = sum(
        balance_loss_of_one_sequence(part.double(), weight_ED) / 3
        for part in hidden_TD.split(lengths)
    )
    mean.backward()
    torch.testing.assert_close(
        gradient.double(), weight_ED.grad, rtol=0, atol=float(1e-5 * weight_ED.grad.abs().max())
    )


def test_balance_loss_by_hand(router):
    # Two tokens choose experts {0, 1} and {0, 2}: loads 2, 1, 1, and f = 8 / (2 x 2) x load is
    # 4, 2, 2. The loss is alpha x the sum of f_i x (mean of two scores): its gradient in each score
    # is alpha x f_i / 2.
    device = router.weight.device
    router.stream = stream_of([2], balance_scale=1.0, device=device)
    scores_TE = torch.full((2, 8), 1 / 8, device=device, requires_grad=True)
    chosen_TE = torch.zeros(2, 8, dtype=torch.bool, device=device)
    chosen_TE[0, [0, 1]] = chosen_TE[1, [0, 2]] = True
    probs = torch.zeros(1, device=device, requires_grad=True)
    router._apply_seq_aux_loss(probs, scores_TE, chosen_TE, 2, 1).sum().backward()
    expected_E = ALPHA * torch.tensor([2.0, 1, 1, 0, 0, 0, 0, 0])
    torch.testing.assert_close(scores_TE.grad.cpu(), expected_E.expand(2, 8))


def test_balance_loss_of_a_softmax_router_is_hugging_faces(one_rank):
    # theirs, over experts_per_token: E x sum_i (share of the K T choices that fall on i) x P_i
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    policy = one_rank.policy(load_family("qwen3_moe", f"model.balance_loss={ALPHA}"))
    MoEAuxLossAutoScaler.set_loss_scale(torch.ones(1, device=policy.host.device))
    router = policy.chunks[0].decoder.layers[1].mlp.router.train()
    hidden_TD = random_hidden(30, router)
    gradient = balance_gradient(router, hidden_TD, (30,), scale=1.0)
    weight_ED = router.weight.detach().clone().requires_grad_()
    theirs = load_balancing_loss_func((hidden_TD @ weight_ED.T,), NUM_EXPERTS, TOP_K)
    (ALPHA * theirs / TOP_K).backward()
    tolerance = 1e-5 * float(weight_ED.grad.abs().max())
    torch.testing.assert_close(gradient, weight_ED.grad, rtol=0, atol=tolerance)


def test_balance_loss_does_not_depend_on_the_packing(router):
    hidden_TD = random_hidden(30, router)
    first_TD, second_TD = hidden_TD.split((10, 20))
    together = balance_gradient(router, hidden_TD, (10, 20), scale=0.5)
    apart = balance_gradient(router, first_TD, (10,), scale=0.5)
    apart = apart + balance_gradient(router, second_TD, (20,), scale=0.5)
    one_sequence = balance_gradient(router, hidden_TD, (30,), scale=1.0)
    tolerance = 1e-5 * float(apart.abs().max())
    torch.testing.assert_close(together, apart, rtol=0, atol=tolerance)
    assert (together - one_sequence).abs().max() > 100 * tolerance


def test_padding_has_no_balance_loss_and_no_load(router):
    hidden_TD = random_hidden(16, router)
    padded = balance_gradient(router, hidden_TD, (9, 4, 3), num_padding=3, scale=0.5)
    padded_load_E = router.local_tokens_per_expert.clone()
    router.local_tokens_per_expert.zero_()
    bare = balance_gradient(router, hidden_TD[:13], (9, 4), scale=0.5)
    torch.testing.assert_close(padded, bare, rtol=0, atol=1e-6 * float(bare.abs().max()))
    assert torch.equal(padded_load_E, router.local_tokens_per_expert)
    assert padded_load_E.sum() == 13 * TOP_K


@pytest.mark.parametrize("family", ["deepseek_v3", "qwen3_moe"])
def test_a_replayed_choice_has_the_routers_own_weights_and_gradient(one_rank, family):
    policy = one_rank.policy(load_family(family))
    router, config = policy.chunks[0].decoder.layers[1].mlp.router, policy.config
    hidden_TD = random_hidden(6, router)
    router.stream = stream_of([6], device=router.weight.device)
    own_TE, chosen_TE = router(hidden_TD[:, None])
    # The worst experts, but for the last token, of which nothing is known; and other layers' are
    # not looked at.
    worst_TK = own_TE.shape[1] - 1 - torch.arange(config.experts_per_token).expand(6, -1)
    replayed_TMK = torch.zeros(6, config.num_layers, config.experts_per_token, dtype=torch.int16)
    replayed_TMK[:, 1] = worst_TK
    replayed_TMK[-1] = -1
    router.stream.routed_experts_TMK = replayed_TMK.to(router.weight.device)
    probs_TE, map_TE = router(hidden_TD[:, None])
    expected_TE = torch.zeros_like(map_TE).scatter(1, worst_TK.to(map_TE.device), True)
    expected_TE[-1] = chosen_TE[-1]
    assert torch.equal(map_TE, expected_TE)
    # Normalised over the experts that are chosen, whoever chose them.
    torch.testing.assert_close(probs_TE.sum(dim=1), own_TE.sum(dim=1))
    scores_TE = hidden_TD @ router.weight.T
    scores_TE = scores_TE.sigmoid() if family == "deepseek_v3" else scores_TE.exp()
    kept_TE = scores_TE * map_TE
    share_TE = kept_TE / kept_TE.sum(dim=1, keepdim=True) * own_TE.sum(dim=1, keepdim=True)
    torch.testing.assert_close(probs_TE, share_TE)
    (gradient,) = torch.autograd.grad(probs_TE[0, worst_TK[0, 0]], router.weight)
    assert gradient[worst_TK[0]].abs().min() > 0


def test_no_load_is_counted_without_gradients(router):
    router.stream = stream_of([4], device=router.weight.device)
    with torch.no_grad():
        router(random_hidden(4, router)[:, None])
    assert router.local_tokens_per_expert.sum() == 0


def test_a_step_moves_the_bias_against_the_load_of_all_micro_batches(policy):
    routers = [layer.mlp.router for layer in policy.chunks[0].decoder.layers[1:]]
    loads = [torch.zeros(NUM_EXPERTS) for _ in routers]
    num_calls = [0]

    def count(load_E: Tensor, module, inputs, outputs) -> None:
        load_E += outputs[1].sum(dim=0).cpu()
        num_calls[0] += 1

    for router, load_E in zip(routers, loads, strict=True):
        router.register_forward_hook(partial(count, load_E))
    rows = tuple(
        TrainRow(
            tokens_L=random_tokens(30, seed=seed), loss_mask_L=torch.arange(30) > 0, weight=0.01
        )
        for seed in range(3)
    )
    step = MegatronStep(policy, OptimizerConfig())
    step.train_step(TrainBatch(rows=rows), step.on_logprobs(sft_loss), lr=1e-3, num_sequences=3)
    assert num_calls == [3 * 3]  # three layers, and three rows that do not fit together
    for router, load_E in zip(routers, loads, strict=True):
        assert load_E.sum() == 90 * TOP_K and len(load_E.unique()) > 1
        # Mean load 90 x 2 / 8 = 22.5: no expert sits on it.
        expected_E = torch.where(load_E > 22.5, -BIAS_RATE, BIAS_RATE)
        torch.testing.assert_close(router.expert_bias.cpu(), expected_E)
        assert router.local_tokens_per_expert.sum() == 0
