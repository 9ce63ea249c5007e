"""Which numbers are FP8, what they lose, and that no choice of parts changes the model."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.testing import assert_close

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.load import load_config
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.config.precision import DType, Fp8, Parts, PrecisionConfig
from megatron_r1.doctor import describe_layers
from megatron_r1.errors import ConfigError
from megatron_r1.models.fp8_linear import Fp8Recipe, fp8_linear
from megatron_r1.models.policy import _mark_sharded_weights
from megatron_r1.models.precision import (
    Installed,
    parts_name,
    plain_name,
)
from megatron_r1.models.specs import transformer_config
from megatron_r1.models.stream import TokenStream
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.weights.fp8_files import is_quantized
from megatron_r1.weights.names import name_table
from r1_kernels.fp8_blocks import dequantize, quantize
from tests.models.builders import logits_of
from tests.rollout.test_inprocess import generate, prompts
from tests.trainers.test_megatron_step import BATCH, LENGTHS

ABSENT = "No module named 'transformer_engine'"
NOTHING = Installed(transformer_engine=False, apex=False, engine_problem=ABSENT)
ENGINE = Installed(transformer_engine=True, apex=True, attention_problem=lambda heads: "")
ENGINE_ALONE = dataclasses.replace(ENGINE, apex=False)
APEX = dataclasses.replace(NOTHING, apex=True)


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


def test_gradient_blocks_are_for_both_products_of_the_gradient():
    x, weight, grad = matrix(150, 200, seed=1), matrix(140, 200, seed=2), matrix(150, 140, seed=3)
    recipe = Fp8Recipe(power_of_two=False, gradient_tile=(128, 128))
    _, grad_x, grad_weight = products(x, weight, grad, recipe)
    block = (128, 128)
    seen_grad, seen_grad_T = (
        round_trip(grad, tile=block),
        round_trip(grad.T.contiguous(), tile=block),
    )
    seen_x_T = round_trip(x.T.contiguous(), tile=(1, 128))
    assert_close(grad_x, seen_grad @ round_trip(weight, tile=block), rtol=1e-5, atol=1e-4)
    assert_close(grad_weight, seen_grad_T @ seen_x_T.T, rtol=1e-5, atol=1e-4)


@pytest.mark.megatron
@pytest.mark.parametrize(
    ("settings", "recipe"),
    [
        ([], Fp8Recipe(power_of_two=True, gradient_tile=(1, 128))),
        (["power_of_two_scales=false"], Fp8Recipe(power_of_two=False)),
        (["gradient_blocks=true"], Fp8Recipe(gradient_tile=(128, 128))),
    ],
)
def test_the_simulations_settings_reach_every_linear(settings, recipe, one_rank):
    policy = one_rank.policy(
        simulated("tiny_v3", *(f"precision.{setting}" for setting in settings))
    )
    recipes = [m._recipe for m in policy.chunks[0].modules() if hasattr(m, "_recipe")]
    assert len(recipes) > 4 * policy.config.num_layers
    assert set(recipes) == {recipe}


@pytest.mark.megatron
def test_the_simulation_adds_a_bias_in_full(one_rank):
    """Qwen2.5 has biases on queries, keys and values, which begin at 0."""
    policy = one_rank.policy(simulated("tiny_dense", "model.qkv_bias=true"))
    linear = policy.chunks[0].decoder.layers[0].self_attention.linear_qkv
    x = matrix(6, 1, policy.config.hidden_size, seed=5).bfloat16().to(policy.host.device)
    with torch.no_grad():
        without, _ = linear(x)
        bias = matrix(linear.bias.numel(), seed=6).to(linear.bias)
        linear.bias.copy_(bias)
        assert torch.equal(linear(x)[0], without + bias)


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


def test_an_expert_without_tokens():
    x, weight = torch.zeros(0, 200), matrix(130, 200, seed=0)
    y, grad_x, grad_weight = products(x, weight, torch.zeros(0, 130), Fp8Recipe())
    assert y.shape == (0, 130) and grad_x.shape == (0, 200)
    assert torch.equal(grad_weight, torch.zeros(130, 200))


def simulated(model: str, *overrides: str):
    names = (f"model={model}", "precision=fp8_block_sim", "rollout.max_response_tokens=64")
    return load_config([*names, *overrides])


@pytest.mark.megatron
@pytest.mark.parametrize("model", ["tiny_v3", "tiny_qwen3_moe"])
def test_a_mixture_of_experts_takes_a_step_in_the_simulation(model, one_rank):
    step = MegatronStep(one_rank.policy(simulated(model)), OptimizerConfig())
    before = {name: w.detach().clone() for name, w in step.policy.named_parameters()}
    row = dataclasses.replace(BATCH, rows=BATCH.rows[1:2])  # of 5 tokens: most experts get none
    result = step.train_step(row, step.on_logprobs(sft_loss), lr=1e-3, num_sequences=1)
    assert not result.skipped and result.metrics["train/grad_norm"] > 0
    moved = {name for name, w in step.policy.named_parameters() if (w != before[name]).any()}
    experts = {name for name in before if ".local_experts." in name}
    assert experts & moved and experts - moved


class PassThrough(torch.nn.Module):
    def forward(self, x):
        return x, None


@pytest.mark.megatron
@torch.no_grad()
def test_latent_attention_decodes_with_the_fp8_numbers_that_it_trains_with(one_rank):
    """It multiplies by its up-projection in another order: see `_decode`."""
    policy = one_rank.policy(simulated("tiny_v3"))
    attention = policy.chunks[0].decoder.layers[0].self_attention
    attention.linear_proj = PassThrough()  # its FP8 tiles would blow up roundings of bfloat16
    device = policy.host.device
    hidden = matrix(20, 1, policy.config.hidden_size, seed=4).bfloat16().to(device)
    cache = policy.new_cache(num_rows=1, max_context=20)

    def attend(first: int, **more) -> torch.Tensor:
        stream = TokenStream(
            positions_T=torch.arange(first, 20, device=device),
            seq_lengths=(20 - first,),
            balance_scale=0.0,
            cache=cache,
            cache_rows_T=torch.zeros(20 - first, dtype=torch.long, device=device),
            **more,
        )
        stream.rope_cos_TK, stream.rope_sin_TK = policy._rope.at(stream.positions_T)
        return attention(hidden[first:], None, packed_seq_params=stream)[0].float()

    whole, last = attend(0)[-1], attend(19, decoding=True, max_context=20)[0]
    # Some roundings of 2^-9 each; FP8 rounds at 2^-4.
    assert (last - whole).norm() < 2**-7 * whole.norm()


@pytest.mark.megatron
def test_the_simulation_decodes_what_it_trains(one_rank):
    """A bfloat16 rounding more or less becomes one of FP8 in the next linear's tiles, so that this
    bound is wide."""
    assert decoding_gaps(one_rank.policy(simulated("tiny_v3"))).mean() < 0.2


def decoding_gaps(policy) -> torch.Tensor:
    """|log-probability while decoding - the training forward's| of each token sampled, in nats."""
    gaps = []
    some_prompts = {prompt.draw: prompt for prompt in prompts(3)}
    for (draw, _), rollout in generate(policy, list(some_prompts.values()), max_batch=5).items():
        prompt_ids = some_prompts[draw].token_ids
        tokens_L = torch.tensor(prompt_ids + rollout.token_ids)
        logprobs_LV = logits_of(policy, tokens_L, [len(tokens_L)]).float().log_softmax(dim=-1)
        num_prompt = len(prompt_ids)
        expected = logprobs_LV[num_prompt - 1 : -1].gather(1, tokens_L[num_prompt:, None])
        gaps.append((expected.squeeze(1) - torch.tensor(rollout.logprobs)).abs())
    return torch.cat(gaps)


class CachingLinear(torch.nn.Module):
    """What Transformer Engine's linears keep: whether weights may have changed."""

    is_first_microbatch = True


@pytest.mark.megatron
def test_rollouts_do_not_take_fp8_weights_of_before_an_update(one_rank):
    policy = one_rank.policy(load_config(["model=tiny_dense", "rollout.max_response_tokens=64"]))
    linear = policy.chunks[0].linear = CachingLinear()
    policy.megatron_config.fp8 = "e4m3"
    for _ in range(2):
        linear.is_first_microbatch = False  # as a forward pass leaves it
        with policy.inference():
            assert linear.is_first_microbatch


@pytest.mark.megatron
def test_whole_weights_are_counted_once_in_a_gradient_norm(one_rank):
    """Transformer Engine marks all weights as parts; here that is done by hand."""
    chunk = one_rank.policy(load_config(["model=tiny_v3"])).chunks[0]
    for weight in chunk.parameters():  # as the layers were built
        vars(weight).pop("tensor_model_parallel", None)
        vars(weight).pop("partition_dim", None)
        vars(weight).pop("partition_stride", None)
    weights = {name: w for name, w in chunk.named_parameters() if "_down_proj." in name}
    for weight in weights.values():
        weight.tensor_model_parallel = True
    _mark_sharded_weights(chunk)
    assert weights and not any(w.tensor_model_parallel for w in weights.values())
    assert chunk.decoder.layers[0].self_attention.linear_proj.weight.tensor_model_parallel


@pytest.mark.megatron
@pytest.mark.parametrize(
    ("name", "recipe", "number_format"),
    [
        ("fp8_block", "blockwise", "e4m3"),
        # One scale for a whole tensor: E4M3 forward, and E5M2, of a wider range, for gradients.
        ("fp8_tensor", "tensorwise", "hybrid"),
        ("mxfp8", "mxfp8", "e4m3"),
        ("fp8_block_sim", None, None),
        ("bf16", None, None),
        ("fp32", None, None),
    ],
)
def test_each_precision_is_its_recipe_of_transformer_engine(name, recipe, number_format):
    # A mixture of experts in FP8 has Megatron-Core ask for Transformer Engine's version.
    config = load_config(["model=tiny_dense", f"precision={name}"])
    dtype = torch.float32 if name == "fp32" else torch.bfloat16
    megatron = transformer_config(config.model, config.parallel, dtype, config.precision)
    assert (megatron.fp8, megatron.fp8_recipe if megatron.fp8 else None) == (number_format, recipe)
    # All three products of every layer are FP8, gradients of weights and the last layer's included.
    assert megatron.fp8_wgrad and not megatron.first_last_layers_bf16
    # Weights, and the attention between its linears, are not.
    assert megatron.params_dtype is dtype and not megatron.fp8_param
    assert not (megatron.fp8_dot_product_attention or megatron.fp8_multi_head_attention)


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
    plain = one_rank.policy(load_config([*prefix, "precision=bf16", "precision.parts=plain"]))
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
        # Which multiplies matrices that are all float32 in TF32.
        (PrecisionConfig(), ENGINE, "apex"),
        (PrecisionConfig(), ENGINE_ALONE, "plain"),
        (PrecisionConfig(parts=Parts.transformer_engine), ENGINE, "transformer_engine"),
        (precision(parts=Parts.transformer_engine), ENGINE, "transformer_engine"),
    ],
)
def test_parts_are_the_best_that_are_here(asked, installed, taken):
    assert parts_name(asked, installed) == taken
    assert asked.token_multiple == (32 if asked.fp8 in (Fp8.block, Fp8.mxfp8) else 1)


@pytest.mark.parametrize(
    ("name", "layout", "multiple"),
    [
        # A product takes whole tiles of 32 tokens, and one rank holds all tokens of the stream.
        ("fp8_block", {}, 32),
        ("fp8_block", dict(tensor=2, sequence=False), 32),
        # Two and four ranks hold a part each, of whole blocks of 128, which they gather in FP8.
        ("fp8_block", dict(tensor=2), 256),
        ("fp8_block", dict(tensor=4), 512),
        # One scale for a tensor has no tiles, those of mxfp8 are 32 long.
        ("fp8_tensor", dict(tensor=2), 64),
        ("mxfp8", dict(tensor=2), 64),
        ("fp8_block_sim", dict(tensor=4), 4),
        ("bf16", dict(tensor=4), 4),
    ],
)
def test_ranks_that_share_a_stream_hold_whole_tiles_of_it(name, layout, multiple):
    config = load_config([f"precision={name}"]).precision
    assert ParallelConfig(**layout).stream_multiple(config) == multiple


@pytest.mark.parametrize(
    ("model", "precision_name", "layout", "refused"),
    [
        ("tiny_v3", "fp8_block", dict(tensor=2), "model.q_lora_rank = 64"),
        ("tiny_v3", "fp8_block", {}, None),
        ("tiny_v3", "fp8_block_sim", dict(tensor=2), None),
        ("tiny_v3", "mxfp8", dict(tensor=2), None),
        ("tiny_dense model.hidden_size=192", "fp8_block", dict(tensor=2), "hidden_size = 192"),
        ("tiny_dense model.hidden_size=192", "fp8_block", dict(tensor=2, sequence="false"), None),
        ("tiny_dense", "fp8_block", dict(tensor=2), None),
        ("moonlight_16b_a3b", "fp8_block", dict(tensor=8), None),
        ("deepseek_v3", "fp8_block", dict(tensor=8), None),
    ],
)
def test_blocks_that_ranks_gather_divide_the_widths(model, precision_name, layout, refused):
    settings = [f"parallel.{name}={value}" for name, value in layout.items()]
    config = load_config([*f"model={model}".split(), f"precision={precision_name}", *settings])
    if refused is None:
        config.validate_layout(layout.get("tensor", 1))
    else:
        with pytest.raises(ConfigError, match=rf"{refused} .*multiple of 128.*fp8_block_sim"):
            config.validate_layout(layout["tensor"])


def test_parts_are_looked_for_on_a_gpu_alone():
    found = Installed.on(torch.device("cpu"))
    assert (found.transformer_engine, found.apex) == (False, False)
    assert found.engine_problem == found.apex_problem == "the device is cpu"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the real ones may be here")
def test_what_cannot_be_imported_is_not_installed(packages):
    gpu = torch.device("cuda")
    assert "No module named 'transformer_engine'" in Installed.on(gpu).engine_problem
    packages(
        transformer_engine__pytorch="raise ImportError('libcublasLt.so.13: no such file')",
        apex__normalization="",
        apex__optimizers="",
        amp_C="",
    )
    found = Installed.on(gpu)
    assert (found.transformer_engine, found.apex) == (False, False)
    assert found.apex_problem == "ModuleNotFoundError: No module named 'fused_layer_norm_cuda'"
    assert parts_name(precision(), found) == "plain"
    with pytest.raises(ConfigError, match=r"it cannot be had here \(ImportError: libcublasLt.so"):
        parts_name(precision(Fp8.block), found)
    packages(fused_layer_norm_cuda="")
    assert parts_name(precision(), Installed.on(gpu)) == "apex"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the real one may be here")
def test_a_device_that_cannot_compute_a_recipe_is_told_before_a_model_is_built(packages):
    """Transformer Engine's answers on a Hopper GPU under CUDA 12.8."""
    answers = {
        "check_fp8_support": (True, ""),
        "check_fp8_block_scaling_support": (False, "requires CUDA >= 12.9."),
        "check_mxfp8_support": (False, "10.0 or higher required"),
    }
    source = "".join(f"def {name}():\n    return {said!r}\n" for name, said in answers.items())
    packages(transformer_engine__pytorch__fp8=source)
    found = Installed.on(torch.device("cuda"))
    assert found.transformer_engine
    assert set(found.unfit) == {Fp8.block, Fp8.mxfp8}
    assert parts_name(precision(Fp8.tensor), found) == "transformer_engine"
    wayout = r"Here: precision=fp8_tensor, fp8_block_sim, bf16$"
    with pytest.raises(ConfigError, match=rf"block: .*\(requires CUDA >= 12.9.\).*{wayout}"):
        parts_name(precision(Fp8.block), found)
    with pytest.raises(ConfigError, match=rf"mxfp8: .*\(10.0 or higher required\).*{wayout}"):
        parts_name(precision(Fp8.mxfp8), found)


@pytest.mark.parametrize("name", ["fp8_block", "fp8_tensor", "mxfp8"])
def test_fp8_without_transformer_engine_says_what_to_do(name):
    config = load_config([f"precision={name}"]).precision
    with pytest.raises(ConfigError, match=r"pip install -e.*precision=fp8_block_sim"):
        parts_name(config, APEX)


def test_layers_of_transformer_engine_that_are_asked_for_are_there_or_an_error():
    with pytest.raises(ConfigError, match="parts = transformer_engine.*pip install.*parts=auto"):
        parts_name(precision(parts=Parts.transformer_engine), APEX)
    with pytest.raises(ConfigError, match="parts = transformer_engine.*fp8 = block_sim"):
        precision(Fp8.block_sim, parts=Parts.transformer_engine)


def test_the_doctor_says_which_precisions_have_other_layers():
    gpu = torch.device("cuda")
    said = describe_layers(gpu, ENGINE_ALONE)
    both = "its attention for heads of 128 and latent heads of 192 and 128"
    assert said.startswith(f"transformer engine layers on cuda, {both}; plain with precision=fp32")
    nothing = dataclasses.replace(ENGINE, attention_problem=lambda heads: "no")
    grouped_alone = dataclasses.replace(
        ENGINE, attention_problem=lambda heads: "" if heads.key_width == 128 else "no"
    )
    assert "its attention for heads of 128;" in describe_layers(gpu, grouped_alone)
    assert "its attention" not in describe_layers(gpu, nothing)
    assert "TF32" in said and "TF32" not in describe_layers(gpu, APEX)
    assert describe_layers(torch.device("cpu"), NOTHING) == "plain layers on cpu"


@pytest.mark.megatron
def test_moments_in_bfloat16_need_transformer_engine(one_rank):
    policy = one_rank.policy(load_config(["model=tiny_dense", "rollout.max_response_tokens=64"]))
    if not Installed.on(policy.host.device).transformer_engine:
        with pytest.raises(
            ConfigError, match="bf16_moments.*the device is cpu.*bf16_moments=false"
        ):
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
