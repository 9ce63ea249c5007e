"""Updates through Megatron's schedule: invariance to packing, skipped steps, and learning."""

from __future__ import annotations

import dataclasses
import math
from functools import partial

import pytest
import torch
from torch import Tensor

from megatron_r1.algos.grpo import grpo_loss
from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.algo import GrpoConfig
from megatron_r1.config.load import load_config
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.data.packing import build_micro_batch
from megatron_r1.trainers.forward_passes import row_logprobs
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.micro_batches import move_to_device
from megatron_r1.types import TrainBatch, TrainRow
from tests.models.builders import logits_of

pytestmark = pytest.mark.megatron

LENGTHS = (24, 5, 17, 9, 24)
NUM_TRAINABLE = sum(LENGTHS) - len(LENGTHS)


def row_of(length: int, seed: int) -> TrainRow:
    """Random tokens; all but the first are trained on, each with the same share of the loss."""
    tokens_L = torch.randint(0, 512, (length,), generator=torch.Generator().manual_seed(seed))
    return TrainRow(
        tokens_L=tokens_L,
        loss_mask_L=torch.arange(length) > 0,
        advantage=1.0 if seed % 2 else -1.0,
        weight=1 / NUM_TRAINABLE,
        logprobs_old_L=torch.full((length,), -6.0),
        logprobs_ref_L=torch.full((length,), -6.5),
    )


BATCH = TrainBatch(rows=tuple(row_of(length, seed) for seed, length in enumerate(LENGTHS)))
LOSSES = {"sft": sft_loss, "grpo": partial(grpo_loss, config=GrpoConfig())}


def build(one_rank, name: str, *overrides: str) -> MegatronStep:
    config = load_config([f"model={name}", "rollout.max_response_tokens=64", *overrides])
    return MegatronStep(one_rank.policy(config), OptimizerConfig())


def weights(step: MegatronStep) -> dict[str, Tensor]:
    return {n: w.detach().clone() for n, w in step.policy.named_parameters()}


def loss_and_gradients(
    step: MegatronStep, loss, batch: TrainBatch = BATCH
) -> tuple[float, dict[str, Tensor], int]:
    outputs = step.accumulate_gradients(batch, step.on_logprobs(loss), num_sequences=len(LENGTHS))
    gradients = {n: w.main_grad.clone() for n, w in step.policy.named_parameters()}
    return sum(float(out["train/loss"][0]) for out in outputs), gradients, len(outputs)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense"])
def test_loss_and_gradients_do_not_depend_on_micro_batches(name, loss, one_rank):
    # A balance loss that matters, beside the main one.
    extra = ["model.balance_loss=0.1"] if name == "tiny_v3" else []
    found = {}
    for capacity in (4096, 48, 24):
        capacity_setting = f"parallel.max_tokens_per_microbatch={capacity}"
        step = build(one_rank, name, capacity_setting, *extra)
        found[capacity] = loss_and_gradients(step, LOSSES[loss])
    whole_loss, whole_gradients, num_whole = found[4096]
    # 79 tokens: all together; 24 + 24 and the rest; 24, 24, 17 + 5 and 9.
    assert [num_whole, found[48][2], found[24][2]] == [1, 2, 4]
    for capacity in (48, 24):
        split_loss, split_gradients, _ = found[capacity]
        assert split_loss == pytest.approx(whole_loss, rel=1e-5)
        for name, whole in whole_gradients.items():
            gap = (split_gradients[name] - whole).abs().max()
            assert gap <= 1e-4 * whole.abs().max(), f"{name}: {gap:.1e}"


@pytest.mark.parametrize("capacity", [4096, 24])
def test_before_an_update_its_own_pass_has_the_old_logprobs(capacity, one_rank):
    capacity_setting = f"parallel.max_tokens_per_microbatch={capacity}"
    step = build(one_rank, "tiny_v3", capacity_setting, "model.bias_update_rate=0")
    found = {}
    for name, old in (
        ("computed", row_logprobs(step.policy, BATCH)),
        ("left out", [None] * len(LENGTHS)),
    ):
        rows = zip(BATCH.rows, old, strict=True)
        batch = TrainBatch(tuple(dataclasses.replace(row, logprobs_old_L=x) for row, x in rows))
        found[name] = loss_and_gradients(step, LOSSES["grpo"], batch)
    assert found["computed"][0] == found["left out"][0]
    for name, expected in found["computed"][1].items():
        assert torch.equal(found["left out"][1][name], expected), name


def test_gradients_do_not_depend_on_a_step_before(one_rank):
    step = build(one_rank, "tiny_v3", "model.bias_update_rate=0")
    _, first, _ = loss_and_gradients(step, sft_loss)
    _, second, _ = loss_and_gradients(step, sft_loss)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense"])
def test_recomputing_activations_saves_memory_and_changes_no_gradient(name, one_rank):
    saved_bytes, found = {}, {}
    for recompute in ("none", "selective", "full"):
        step = build(one_rank, name, f"parallel.recompute={recompute}")
        found[recompute] = loss_and_gradients(step, sft_loss)
        saved_bytes[recompute] = bytes_saved_by_a_forward_pass(step)
    # Parameters are among what is saved: 1.1 M of them, and inputs of layers beside them.
    assert saved_bytes["full"] < 0.7 * saved_bytes["selective"]
    assert saved_bytes["selective"] < saved_bytes["none"]
    for recompute in ("selective", "full"):
        assert found[recompute][0] == found["none"][0]
        for parameter, expected in found["none"][1].items():
            assert torch.equal(found[recompute][1][parameter], expected), (recompute, parameter)


def bytes_saved_by_a_forward_pass(step: MegatronStep) -> int:
    policy, sizes = step.policy, {}
    micro = build_micro_batch(BATCH.rows, pad_to_multiple=1, pad_token=0)
    micro = move_to_device(micro, policy.host.device)

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        output = policy.forward(micro.tokens_T, policy.training_stream(micro, len(LENGTHS)))
    assert output.requires_grad
    return sum(sizes.values())


def test_the_gradient_is_that_of_plain_autograd(one_rank):
    step = build(one_rank, "tiny_dense")
    _, gradients, _ = loss_and_gradients(step, sft_loss)
    policy = build(one_rank, "tiny_dense").policy
    total = 0
    for row in BATCH.rows:
        micro = build_micro_batch([row], pad_to_multiple=1, pad_token=0)
        micro = move_to_device(micro, policy.host.device)
        logits_TV = policy.forward(micro.tokens_T, policy.training_stream(micro, len(LENGTHS)))
        nll = torch.nn.functional.cross_entropy(logits_TV[:-1], micro.tokens_T[1:], reduction="sum")
        total = total + nll / NUM_TRAINABLE
    parameters = dict(policy.named_parameters())
    plain = torch.autograd.grad(total, list(parameters.values()))
    for name, expected in zip(parameters, plain, strict=True):
        gap = (gradients[name] - expected).abs().max()
        assert gap <= 1e-4 * expected.abs().max(), f"{name}: {gap:.1e}"


def test_a_gradient_that_is_not_finite_changes_nothing(one_rank):
    loss = LOSSES["grpo"]
    broken = dataclasses.replace(BATCH.rows[1], advantage=math.nan)
    broken_batch = TrainBatch(rows=(BATCH.rows[0], broken, *BATCH.rows[2:]))
    step, untouched = build(one_rank, "tiny_dense"), build(one_rank, "tiny_dense")
    before = weights(step)
    result = step.train_step(broken_batch, step.on_logprobs(loss), lr=1e-3, num_sequences=5)
    assert result.skipped
    assert all(torch.equal(before[name], weight) for name, weight in weights(step).items())
    # Nor does the optimizer remember it: the next step is what a fresh optimizer's first one is.
    for each in (step, untouched):
        again = each.train_step(BATCH, each.on_logprobs(loss), lr=1e-3, num_sequences=5)
        assert not again.skipped
    after, expected = weights(step), weights(untouched)
    assert all(torch.equal(after[name], expected[name]) for name in expected)
    assert not any(torch.equal(after[name], before[name]) for name in before)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense"])
def test_logprobs_are_the_log_softmax_of_the_logits_before(name, temperature, one_rank):
    step = build(one_rank, name, "parallel.max_tokens_per_microbatch=48")
    by_row = row_logprobs(step.policy, BATCH, temperature=temperature)
    for row, logprobs_L in zip(BATCH.rows, by_row, strict=True):
        logits_LV = logits_of(step.policy, row.tokens_L, [row.num_tokens])
        log_p_LV = torch.log_softmax(logits_LV / temperature, dim=-1)
        expected_L = log_p_LV[:-1].gather(1, row.tokens_L[1:, None]).squeeze(1)
        assert logprobs_L[0] == 0
        torch.testing.assert_close(logprobs_L[1:].cpu(), expected_L, rtol=0, atol=1e-4)


def test_metrics_count_tokens_and_name_the_update(one_rank):
    step = build(one_rank, "tiny_dense", "parallel.max_tokens_per_microbatch=24")
    seen = []
    result = step.train_step(
        BATCH,
        step.on_logprobs(sft_loss),
        lr=1e-3,
        num_sequences=5,
        on_micro_batch=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert result.metrics["train/tokens"] == 79 and result.metrics["train/lr"] == 1e-3
    # Equal weights that add up to 1: the loss is the mean, near ln 512 = 6.24 before training.
    assert result.metrics["train/loss"] == pytest.approx(result.metrics["train/nll"], rel=1e-5)
    assert result.metrics["train/nll"] == pytest.approx(math.log(512), abs=0.3)


@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense"])
def test_a_tiny_policy_learns_a_batch_by_heart(name, one_rank):
    step = build(one_rank, name)
    loss = step.on_logprobs(sft_loss)
    nll = [
        step.train_step(BATCH, loss, lr=3e-3, num_sequences=5).metrics["train/nll"]
        for _ in range(30)
    ]
    assert nll[0] > 6 and nll[-1] < nll[0] / 2


def test_a_skipped_step_leaves_the_expert_bias(one_rank):
    step = build(one_rank, "tiny_v3")
    rows = (dataclasses.replace(BATCH.rows[0], advantage=math.nan), *BATCH.rows[1:])
    loss = step.on_logprobs(LOSSES["grpo"])
    assert step.train_step(TrainBatch(rows), loss, lr=1e-3, num_sequences=5).skipped
    biases = [b for n, b in step.policy.named_buffers() if n.endswith("expert_bias")]
    assert biases
    assert all((bias == 0).all() for bias in biases)


@pytest.mark.parametrize(("clip_grad", "moves"), [(1e-12, False), (1.0, True)])
def test_gradients_are_clipped_before_adam(clip_grad, moves, one_rank):
    # Adam forgets a gradient's scale until it falls below its eps of 1e-8.
    config = load_config(["model=tiny_dense", "rollout.max_response_tokens=64"])
    optimizer = OptimizerConfig(clip_grad=clip_grad, eps=1e-8)
    step = MegatronStep(one_rank.policy(config), optimizer)
    before = weights(step)
    step.train_step(BATCH, step.on_logprobs(sft_loss), lr=1e-3, num_sequences=5)
    change = max(float((w - before[n]).abs().max()) for n, w in weights(step).items())
    assert (change > 5e-4) == moves and (change < 1e-6) != moves


def test_gradients_of_bfloat16_moments_are_clipped(one_rank):
    """Transformer Engine's Adam reads them from `decoupled_grad`. Megatron-Core puts them there on
    a CPU, too; plain Adam then finds none."""
    config = load_config(["model=tiny_dense", "rollout.max_response_tokens=64"])
    step = MegatronStep(one_rank.policy(config), OptimizerConfig(clip_grad=0.125))
    step.accumulate_gradients(BATCH, step.on_logprobs(sft_loss), num_sequences=5)
    chained = step.optimizer.chained_optimizers
    for optimizer in chained:
        optimizer.config.use_precision_aware_optimizer_no_fp8_or_ds_fp8 = True
    norm, skipped = step._update(lr=1e-3)
    assert norm > 0.25 and not skipped
    gradients = [p.decoupled_grad.flatten() for o in chained for p in o.get_parameters()]
    assert float(torch.cat(gradients).norm()) == pytest.approx(0.125, rel=1e-4)


@pytest.mark.parametrize("name", ["tiny_dense", "tiny_v3"])
def test_without_all_logits_loss_and_gradients_are_the_same(name, one_rank, monkeypatch):
    monkeypatch.setattr("r1_kernels.token_logprobs.CHUNK_BYTES", 1 << 12)
    results = []
    for logprobs in ("fused", "plain"):
        # Tied embeddings in the dense model: its head's gradient meets that of the embedding.
        step = build(one_rank, name, f"precision.logprobs={logprobs}")
        step = MegatronStep(step.policy, OptimizerConfig(), mtp_loss=0.3)
        assert step.on_logprobs(LOSSES["grpo"]).reads_hidden == (logprobs == "fused")
        rows = row_logprobs(step.policy, BATCH, temperature=0.8)
        loss, gradients, _ = loss_and_gradients(step, LOSSES["grpo"])
        results.append((loss, rows, gradients))
    (fused, *_), (plain, *_) = results
    assert fused == pytest.approx(plain, rel=1e-6)
    for one, other in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    for name_, gradient in results[1][2].items():
        # Sums in another order; gradients of this batch reach 1e-1.
        torch.testing.assert_close(results[0][2][name_], gradient, rtol=1e-4, atol=1e-6, msg=name_)


def test_a_float32_head_keeps_what_bfloat16_logits_lose(one_rank):
    """A policy in bfloat16 whose head is given in float32 agrees with itself both ways, and not
    with one whose logits are rounded."""
    rows = {}
    for logprobs in ("fused", "plain"):
        for float32_head in (True, False):
            step = build(
                one_rank,
                "tiny_dense",
                "precision=bf16",
                f"precision.logprobs={logprobs}",
                f"precision.float32_head={float32_head}",
            )
            rows[logprobs, float32_head] = torch.cat(row_logprobs(step.policy, BATCH))
    exact = rows["plain", True]
    torch.testing.assert_close(rows["fused", True], exact, rtol=1e-5, atol=1e-5)
    for logprobs in ("fused", "plain"):
        assert (rows[logprobs, False] - exact).abs().max() > 1e-4
