"""Prediction layers against plain torch, one sequence at a time."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.load import load_config
from megatron_r1.config.model import ModelConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import TrainBatch, TrainRow
from tests.models.builders import random_tokens, stream_of

pytestmark = pytest.mark.megatron

LENGTHS = (24, 1, 3, 17, 2, 9)
LAMBDA = 0.3


def row_of(length: int, seed: int) -> TrainRow:
    """A third of the tokens are a prompt; tokens of each row weigh differently."""
    mask_L = torch.arange(length) >= length // 3
    mask_L[0] = False
    return TrainRow(
        tokens_L=random_tokens(length, seed=seed), loss_mask_L=mask_L, weight=0.01 * (1 + seed)
    )


ROWS = tuple(row_of(length, seed) for seed, length in enumerate(LENGTHS))


def build(one_rank, *overrides: str, mtp_loss: float = LAMBDA) -> MegatronStep:
    config = load_config([*overrides, "rollout.max_response_tokens=64"])
    return MegatronStep(one_rank.policy(config), OptimizerConfig(), mtp_loss=mtp_loss)


def loss_and_gradients(step: MegatronStep) -> tuple[float, dict[str, Tensor]]:
    outputs = step.accumulate_gradients(
        TrainBatch(ROWS), step.on_logprobs(sft_loss), num_sequences=len(ROWS)
    )
    gradients = {name: p.main_grad.double().cpu() for name, p in step.policy.named_parameters()}
    return sum(float(out["train/loss"][0]) for out in outputs), gradients


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def dense_layer(x_LD: Tensor, weights: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """A layer of grouped-query attention and SwiGLU; weights named as Megatron names them."""
    length, groups, width = len(x_LD), config.num_kv_heads, config.head_dim
    normed = rms_norm(x_LD, weights["input_layernorm.weight"], config.norm_eps)
    qkv = F.linear(
        normed,
        weights["self_attention.linear_qkv.weight"],
        weights["self_attention.linear_qkv.bias"],
    )
    per_group = config.num_attention_heads // groups
    qkv = qkv.reshape(length, groups, per_group + 2, width)
    angles = torch.outer(
        torch.arange(length, dtype=x_LD.dtype),
        config.rope.theta ** (-torch.arange(0, width, 2, dtype=x_LD.dtype) / width),
    )[:, None, None, :]
    first, second = qkv[:, :, :-1].chunk(2, dim=-1)  # queries and keys
    cos, sin = angles.cos(), angles.sin()
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    scores = torch.einsum("lghk,mgk->ghlm", rotated[:, :, :-1], rotated[:, :, -1]) / width**0.5
    scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
    attended = torch.einsum("ghlm,mgk->lghk", scores.softmax(-1), qkv[:, :, -1])
    x_LD = x_LD + F.linear(attended.flatten(1), weights["self_attention.linear_proj.weight"])
    normed = rms_norm(x_LD, weights["pre_mlp_layernorm.weight"], config.norm_eps)
    gate, up = F.linear(normed, weights["mlp.linear_fc1.weight"]).chunk(2, dim=-1)
    return x_LD + F.linear(F.silu(gate) * up, weights["mlp.linear_fc2.weight"])


def below(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name[len(prefix) :]: w for name, w in weights.items() if name.startswith(prefix)}


def nll_sum(logits_LV: Tensor, tokens_L: Tensor, row: TrainRow, first: int) -> Tensor:
    """Weighted negative log-likelihood of the trainable tokens from `first` on."""
    log_p = logits_LV.log_softmax(-1).gather(1, tokens_L[first:, None]).squeeze(1)
    return -(log_p * row.loss_mask_L[first:]).sum() * row.weight


def reference_loss(weights: dict[str, Tensor], config: ModelConfig) -> Tensor:
    """DeepSeek-V3 Eq. 21 to 25 for a dense model, row by row."""
    embedding, eps = weights["embedding.word_embeddings.weight"], config.norm_eps
    main = ahead = torch.zeros((), dtype=torch.float64)
    for row in ROWS:
        tokens_L = row.tokens_L
        states = embedding[tokens_L]
        for layer in range(config.num_layers):
            states = dense_layer(states, below(weights, f"decoder.layers.{layer}."), config)
        states = rms_norm(states, weights["decoder.final_layernorm.weight"], eps)
        main = main + nll_sum(states[:-1] @ embedding.T, tokens_L, row, first=1)
        for k in range(1, config.num_mtp_layers + 1):
            if len(tokens_L) <= k:
                break
            mtp = below(weights, f"mtp.layers.{k - 1}.")
            both = torch.cat(
                (
                    rms_norm(embedding[tokens_L[k:]], mtp["enorm.weight"], eps),
                    rms_norm(states[:-1], mtp["hnorm.weight"], eps),
                ),
                dim=-1,
            )
            states = dense_layer(
                F.linear(both, mtp["eh_proj.weight"]), below(mtp, "transformer_layer."), config
            )
            states = rms_norm(states, mtp["final_layernorm.weight"], eps)
            ahead = ahead + nll_sum(states[:-1] @ embedding.T, tokens_L, row, first=k + 1)
    return main + LAMBDA / config.num_mtp_layers * ahead


@pytest.mark.parametrize(
    ("num_mtp_layers", "capacity", "recompute"),
    [(1, 4096, "none"), (2, 4096, "none"), (2, 32, "none"), (2, 32, "full"), (1, 32, "selective")],
)
def test_loss_and_gradients_are_those_of_plain_torch(num_mtp_layers, capacity, recompute, one_rank):
    step = build(
        one_rank,
        "model=tiny_dense",
        f"model.num_mtp_layers={num_mtp_layers}",
        f"parallel.max_tokens_per_microbatch={capacity}",
        f"parallel.recompute={recompute}",
    )
    loss, gradients = loss_and_gradients(step)
    weights = {
        name: p.detach().cpu().double().requires_grad_()
        for name, p in step.policy.named_parameters()
    }
    expected = reference_loss(weights, step.policy.config)
    assert loss == pytest.approx(float(expected), rel=1e-6)
    plain = torch.autograd.grad(expected, list(weights.values()))
    assert any(name.startswith(f"mtp.layers.{num_mtp_layers - 1}.") for name in weights)
    for name, gradient in zip(weights, plain, strict=True):
        gap = (gradients[name] - gradient).abs().max() / gradient.abs().max()
        assert gap < 1e-4, f"{name}: {gap:.1e}"


def test_a_sparse_prediction_layer_sees_no_other_sequence(one_rank):
    # The same modules, one sequence after the other, with tokens shifted by hand.
    step = build(one_rank, "model=tiny_v3", "model.num_mtp_layers=1", "model.balance_loss=0")
    loss, gradients = loss_and_gradients(step)
    policy, (chunk,) = step.policy, step.policy.chunks
    layer = chunk.mtp.layers[0]
    total = torch.zeros((), device=policy.host.device)
    for row in ROWS:
        tokens_L = row.tokens_L.to(policy.host.device)
        kept: list[Tensor] = []
        hook = chunk.decoder.register_forward_hook(lambda *call, kept=kept: kept.append(call[2]))
        logits_LV = policy.forward(tokens_L, stream_of([len(tokens_L)], device=tokens_L.device))
        hook.remove()
        total = total + nll_sum(logits_LV[:-1].cpu(), row.tokens_L, row, first=1)
        if len(tokens_L) < 3:
            continue
        shifted = chunk.embedding(input_ids=tokens_L[None, 1:], position_ids=None)
        both = torch.cat((layer.enorm(shifted), layer.hnorm(kept[0][:-1])), dim=-1)
        stream = stream_of([len(tokens_L) - 1], device=tokens_L.device)
        stream.rope_cos_TK, stream.rope_sin_TK = policy._rope.at(stream.positions_T)
        states, _ = layer.transformer_layer(
            F.linear(both, layer.eh_proj.weight), None, packed_seq_params=stream
        )
        logits_LV = F.linear(layer.final_layernorm(states), chunk.output_layer.weight)[:, 0]
        total = total + LAMBDA * nll_sum(logits_LV[:-1].cpu(), row.tokens_L, row, first=2)
    assert loss == pytest.approx(float(total), rel=1e-5)
    parameters = dict(policy.named_parameters())
    plain = torch.autograd.grad(total, list(parameters.values()))
    for name, gradient in zip(parameters, plain, strict=True):
        gap = (gradients[name] - gradient.double().cpu()).abs().max() / gradient.abs().max()
        assert gap < 1e-4, f"{name}: {gap:.1e}"


@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense"])
def test_prediction_layers_stay_as_they_are_unless_asked_for(name, one_rank):
    step = build(one_rank, f"model={name}", "model.num_mtp_layers=1", mtp_loss=0.0)
    before = {key: p.detach().clone() for key, p in step.policy.named_parameters()}
    result = step.train_step(
        TrainBatch(ROWS), step.on_logprobs(sft_loss), lr=1e-3, num_sequences=len(ROWS)
    )
    assert "train/mtp_nll" not in result.metrics
    changed = {k for k, p in step.policy.named_parameters() if not torch.equal(p, before[k])}
    assert changed == {key for key in before if not key.startswith("mtp.")}


def test_prediction_layers_learn_a_batch_by_heart(one_rank):
    step = build(one_rank, "model=tiny_dense", "model.num_mtp_layers=1")
    nll = [
        step.train_step(
            TrainBatch(ROWS), step.on_logprobs(sft_loss), lr=3e-3, num_sequences=len(ROWS)
        ).metrics["train/mtp_nll"]
        for _ in range(30)
    ]
    assert nll[0] > 6 and nll[-1] < nll[0] / 2
