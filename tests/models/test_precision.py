"""Which numbers are FP8, what they lose, and that no choice of parts changes the model."""

from __future__ import annotations

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.load import load_config
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.precision import DType, Fp8, Parts, PrecisionConfig
from megatron_r1.errors import ConfigError
from megatron_r1.models.fp8_linear import Fp8Recipe, fp8_linear
from megatron_r1.models.precision import Installed, parts_name, plain_name
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.weights.fp8_files import is_quantized
from megatron_r1.weights.names import name_table
from r1_kernels.fp8_blocks import dequantize, quantize
from tests.trainers.test_megatron_step import BATCH, LENGTHS

NOTHING = Installed(transformer_engine=False, apex=False)
ENGINE = Installed(transformer_engine=True, apex=True)
APEX = Installed(transformer_engine=False, apex=True)


def precision(fp8: Fp8 = Fp8.none, **more) -> PrecisionConfig:
    return PrecisionConfig(dtype=DType.bfloat16, fp8=fp8, **more)


def matrix(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def products(x, weight, grad, recipe):
    x, weight = x.clone().requires_grad_(), weight.clone().requires_grad_()
    y = fp8_linear(x, weight, recipe)
    y.backward(grad)
    return y.detach(), x.grad, weight.grad


def test_numbers_that_fp8_holds_are_multiplied_exactly():
    # Integers to 15 have 4 bits: at a power of two as scale every code is exact.
    draw = torch.Generator().manual_seed(0)
    x, weight, grad = (
        torch.randint(-15, 16, shape, generator=draw).float()
        for shape in ((2, 70, 200), (130, 200), (2, 70, 130))
    )
    y, grad_x, grad_weight = products(x, weight, grad, Fp8Recipe())
    assert torch.equal(y, x @ weight.T)
    assert torch.equal(grad_x, grad @ weight)
    assert torch.equal(grad_weight, grad.flatten(0, 1).T @ x.flatten(0, 1))


def round_trip(x: torch.Tensor, tile: tuple[int, int]) -> torch.Tensor:
    """What FP8 keeps of a matrix."""
    return dequantize(*quantize(x, tile=tile), x.dtype, tile=tile)


def test_the_three_products_are_those_of_tiles_along_what_is_summed_over():
    x, weight, grad = matrix(150, 200, seed=1), matrix(140, 200, seed=2), matrix(150, 140, seed=3)
    y, grad_x, grad_weight = products(x, weight, grad, Fp8Recipe(power_of_two=False))
    tile, block = (1, 128), (128, 128)
    seen_weight = round_trip(weight, tile=block).double()
    expected = (
        round_trip(x, tile=tile).double() @ seen_weight.T,
        round_trip(grad, tile=tile).double() @ seen_weight,
        round_trip(grad.T.contiguous(), tile=tile).double()
        @ round_trip(x.T.contiguous(), tile=tile).double().T,
    )
    exact = (x @ weight.T, grad @ weight, grad.T @ x)
    for actual, wanted, without in zip((y, grad_x, grad_weight), expected, exact, strict=True):
        assert_close(actual.double(), wanted, rtol=1e-5, atol=1e-4)
        # Two factors that are each off by some 2^-5.5: sums of random errors keep that ratio.
        error = (actual - without).norm() / without.norm()
        assert 0.02 < error < 0.06


def test_blocks_on_gradients_lose_tokens_beside_a_loud_one():
    """A token whose gradient is 2^20 times its neighbours': 448 / 2^-9 is 2^17.8, so in a block of
    both nothing is left of the others, and in tiles of one token all of it."""
    x, weight, grad = matrix(128, 128, seed=1), matrix(128, 128, seed=2), matrix(128, 128, seed=3)
    grad[5] *= 2.0**20
    quiet = torch.arange(128) != 5
    exact = (grad @ weight)[quiet]
    for tile, lost in (((1, 128), False), ((128, 128), True)):
        _, grad_x, _ = products(x, weight, grad, Fp8Recipe(gradient_tile=tile))
        error = (grad_x[quiet] - exact).norm() / exact.norm()
        assert (error > 0.9) if lost else (error < 0.06)


def names_and_shapes(policy):
    return {name: tuple(w.shape) for name, w in policy.named_parameters()}


@pytest.mark.megatron
@pytest.mark.parametrize("model", ["tiny_v3", "tiny_qwen3_moe", "tiny_dense"])
def test_fp8_is_what_deepseek_has_in_fp8_and_the_model_is_the_same(model, one_rank):
    prefix = [f"model={model}", "rollout.max_response_tokens=64"]
    if model == "tiny_v3":
        prefix.append("model.num_mtp_layers=1")
    config = load_config([*prefix, "precision=fp8_block_sim"])
    policy = one_rank.policy(config)
    plain = one_rank.policy(load_config([*prefix, "precision=bf16"]))
    assert policy.parts.name == "simulation" and plain.parts.name == "plain"
    assert names_and_shapes(policy) == names_and_shapes(plain)
    for (name, one), (_, other) in zip(
        policy.named_parameters(), plain.named_parameters(), strict=True
    ):
        assert torch.equal(one, other), name

    in_fp8 = {
        f"{policy._global_name(0, module)}.weight"
        for module, linear in policy.chunks[0].named_modules()
        if hasattr(linear, "_recipe")
    }
    in_files = {
        mapping.megatron
        for mapping in name_table(config.model)
        if all(map(is_quantized, mapping.hf, mapping.shapes))
    }
    assert in_fp8 == in_files and in_fp8
    high = {name for name, _ in policy.named_parameters()} - in_fp8
    kinds = ("embedding.", "output_layer.", "norm", ".router.", "bias", ".eh_proj.")
    assert all(any(kind in name for kind in kinds) for name in high), high


@pytest.mark.megatron
def test_gradients_of_a_policy_are_off_by_what_the_format_loses(one_rank):
    results = {}
    for name in ("bf16", "fp8_block_sim"):
        config = load_config(
            ["model=tiny_dense", "rollout.max_response_tokens=64", f"precision={name}"]
        )
        step = MegatronStep(one_rank.policy(config), OptimizerConfig())
        outputs = step.accumulate_gradients(
            BATCH, step.on_logprobs(sft_loss), num_sequences=len(LENGTHS)
        )
        loss = sum(float(output["train/loss"][0]) for output in outputs)
        gradients = [w.main_grad.flatten().clone() for _, w in step.policy.named_parameters()]
        results[name] = loss, torch.cat(gradients)
    (loss, gradient), (fp8_loss, fp8_gradient) = results["bf16"], results["fp8_block_sim"]
    assert loss != fp8_loss and fp8_loss == pytest.approx(loss, rel=5e-3)
    error = (fp8_gradient - gradient).norm() / gradient.norm()
    assert 0.01 < error < 0.2


@pytest.mark.parametrize(
    ("asked", "installed", "taken"),
    [
        (precision(), NOTHING, "plain"),
        (precision(), APEX, "apex"),
        (precision(), ENGINE, "transformer_engine"),
        (precision(parts=Parts.plain), ENGINE, "plain"),
        (precision(Fp8.block_sim), ENGINE, "simulation"),
        (precision(Fp8.block), ENGINE, "transformer_engine"),
        (precision(Fp8.mxfp8), ENGINE, "transformer_engine"),
    ],
)
def test_parts_are_the_best_that_are_here(asked, installed, taken):
    assert parts_name(asked, installed) == taken
    assert asked.token_multiple == (32 if asked.fp8 in (Fp8.block, Fp8.mxfp8) else 1)


def test_parts_are_looked_for_on_a_gpu_alone():
    assert Installed.on(torch.device("cpu")) == NOTHING


@pytest.mark.parametrize("name", ["fp8_block", "fp8_tensor", "mxfp8"])
def test_fp8_without_transformer_engine_says_what_to_do(name):
    config = load_config([f"precision={name}"]).precision
    with pytest.raises(ConfigError, match=r"pip install -e.*precision=fp8_block_sim"):
        parts_name(config, APEX)


@pytest.mark.megatron
def test_moments_in_bfloat16_need_transformer_engine(one_rank):
    policy = one_rank.policy(load_config(["model=tiny_dense", "rollout.max_response_tokens=64"]))
    if policy.parts.name != "transformer_engine":
        with pytest.raises(ConfigError, match="bf16_moments with plain layers.*bf16_moments=false"):
            MegatronStep(policy, OptimizerConfig(bf16_moments=True))


def test_settings_that_contradict_each_other_are_refused():
    with pytest.raises(ConfigError, match="precision.dtype = float32"):
        PrecisionConfig(fp8=Fp8.block)
    with pytest.raises(
        ConfigError, match="precision.gradient_blocks = true with precision.fp8 = block"
    ):
        precision(Fp8.block, gradient_blocks=True)
    with pytest.raises(ConfigError, match="power_of_two_scales = false with precision.fp8 = block"):
        precision(Fp8.block, power_of_two_scales=False)


def test_grouped_experts_have_the_names_of_single_ones():
    experts = "decoder.layers.3.mlp.experts"
    assert (
        plain_name(f"{experts}.linear_fc1.weight17")
        == f"{experts}.local_experts.17.linear_fc1.weight"
    )
    for name in (f"{experts}.local_experts.17.linear_fc1.weight", "output_layer.weight"):
        assert plain_name(name) == name
