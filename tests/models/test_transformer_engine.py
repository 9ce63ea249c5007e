"""Transformer Engine's layers beside plain ones and the simulation, on a GPU. Not run yet."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.load import load_config
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.trainers.megatron_step import MegatronStep
from tests.trainers.test_megatron_step import BATCH, LENGTHS

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.megatron,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformer_engine") is None,
        reason="Transformer Engine is not installed",
    ),
]
MODELS = ["tiny_dense", "tiny_v3", "tiny_qwen3_moe"]


def step_of(one_rank, model: str, *overrides: str) -> MegatronStep:
    config = load_config([f"model={model}", "rollout.max_response_tokens=64", *overrides])
    return MegatronStep(one_rank.policy(config), OptimizerConfig())


def loss_and_gradient(step: MegatronStep) -> tuple[float, torch.Tensor]:
    outputs = step.accumulate_gradients(
        BATCH, step.on_logprobs(sft_loss), num_sequences=len(LENGTHS)
    )
    gradients = sorted((name, w.main_grad.flatten()) for name, w in step.policy.named_parameters())
    return sum(float(output["train/loss"][0]) for output in outputs), torch.cat(
        [gradient.float() for _, gradient in gradients]
    )


@pytest.mark.parametrize("model", MODELS)
def test_the_model_is_the_same_with_either_parts(model, one_rank):
    engine = step_of(one_rank, model, "precision=bf16")
    plain = step_of(one_rank, model, "precision=bf16", "precision.parts=plain")
    assert engine.policy.parts.name == "transformer_engine"
    own, other = (dict(step.policy.named_parameters()) for step in (engine, plain))
    assert own.keys() == other.keys()
    for name, weight in own.items():
        assert torch.equal(weight, other[name]), name
    keys = [
        {name for chunk in step.policy.sharded_state_dict().values() for name in chunk}
        for step in (engine, plain)
    ]
    if model == "tiny_dense":  # experts are stacked by Megatron-Core when they are saved
        assert keys[0] == keys[1]
    (loss, gradient), (plain_loss, plain_gradient) = map(loss_and_gradient, (engine, plain))
    assert loss == pytest.approx(plain_loss, rel=1e-2)
    # bfloat16 rounds at 2^-9; sums of a few layers of it stay under some percent.
    assert (gradient - plain_gradient).norm() < 0.05 * plain_gradient.norm()


@pytest.mark.parametrize("model", MODELS)
def test_fp8_agrees_with_its_simulation(model, one_rank):
    engine = step_of(one_rank, model, "precision=fp8_block")
    simulated = step_of(one_rank, model, "precision=fp8_block_sim")
    (loss, gradient), (sim_loss, sim_gradient) = map(loss_and_gradient, (engine, simulated))
    assert loss == pytest.approx(sim_loss, rel=1e-2)
    # E4M3 alone moves a gradient by a few percent; two computations of the same codes by less.
    assert (gradient - sim_gradient).norm() < 0.05 * sim_gradient.norm()
