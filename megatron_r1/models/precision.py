"""Whose layers a model is built of, and which of them multiply in FP8.

What is FP8 with any `precision.fp8`: the linears of attention and of MLPs, experts and shared
experts among them, in prediction layers, too. Those are the matrices that DeepSeek-V3's files hold
in FP8. What stays in `precision.dtype`: embedding, head, router, norms, the attention between its
linears, and the projection that joins a prediction layer's two inputs.

Decoding in process multiplies by multi-latent attention's up-projection of keys and values in
another order (`StreamLatentAttention._decode`). Under the simulation it takes the FP8 numbers of
weight and latents there, so that sampler and trainer differ by bfloat16's roundings alone. Under
Transformer Engine that one linear is in bfloat16 while decoding: the sampler is off by what FP8
loses in it, log-probabilities of the update are the trainer's own all the same
(`logprobs_old`), and the difference is in the `mismatch/` metrics.

The parameters and their names are the same for all parts: see `plain_name` for Transformer Engine's
grouped experts.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer.spec_utils import ModuleSpec
from megatron.core.transformer.transformer_config import TransformerConfig

from megatron_r1.config.precision import AttentionBy, DType, Fp8, Parts, PrecisionConfig
from megatron_r1.errors import ConfigError
from megatron_r1.models.core_attention import PlainAttention
from megatron_r1.models.fp8_linear import (
    Fp8ColumnLinear,
    Fp8Recipe,
    Fp8ReplicatedLinear,
    Fp8RowLinear,
)
from megatron_r1.models.layers import LatentNorm, ReplicatedLinear, RmsNorm
from megatron_r1.models.packed_attention import Heads, PackedAttention, fused_attention_problem

_RECIPES = {
    Fp8.block: ("blockwise", "e4m3"),
    Fp8.tensor: ("tensorwise", "hybrid"),
    Fp8.mxfp8: ("mxfp8", "e4m3"),
}
"""Transformer Engine's recipes and number formats by Megatron-Core's names; formats are the
recipes' own defaults. With one scale for a whole tensor, gradients take the wider range of E5M2."""


@dataclass(frozen=True)
class LayerParts:
    """What the layer specs are made of."""

    name: str
    column: Any
    """Linears of attention and MLPs, split by outputs."""
    row: Any
    """The same, split by inputs."""
    replicated: Any
    """Multi-latent attention's down-projections."""
    norm: Any
    latent_norm: Any
    attention: Any = PlainAttention
    """What attends between its linears."""
    grouped: tuple[Any, Any, Any] | None = None
    """Experts in grouped products: module, column, row. None: one MLP after another."""


@dataclass(frozen=True)
class Installed:
    """What there is to build of on this machine, for this device."""

    transformer_engine: bool
    apex: bool
    engine_problem: str = ""
    """Why Transformer Engine cannot be taken."""
    apex_problem: str = ""
    unfit: Mapping[Fp8, str] = field(default_factory=dict)
    """What Transformer Engine cannot compute on this device, and its reason."""
    attention_problem: Callable[[Heads], str] = fused_attention_problem

    @staticmethod
    def on(device: torch.device) -> Installed:
        """Both need a GPU, and to be imported."""
        if device.type != "cuda":
            problem = f"the device is {device.type}"
            return Installed(False, False, engine_problem=problem, apex_problem=problem)
        engine, apex = _problem_of(*ENGINE_MODULES), _problem_of(*APEX_MODULES)
        return Installed(
            not engine,
            not apex,
            engine_problem=engine,
            apex_problem=apex,
            unfit={} if engine else _unfit_recipes(),
        )


# Megatron-Core 0.16 takes autocasting from the second.
ENGINE_MODULES = ("transformer_engine.pytorch", "transformer_engine.pytorch.fp8")
APEX_MODULES = ("apex.normalization", "apex.optimizers", "amp_C", "fused_layer_norm_cuda")
"""The package named apex on PyPI, and NVIDIA's that was built without CUDA, lack some of them."""


def parts_name(precision: PrecisionConfig, installed: Installed) -> str:
    """Which parts are taken: plain, simulation, transformer_engine or apex.

    Transformer Engine multiplies matrices that are all float32 in TF32, with 10 bits of each number
    in place of 23 (CUBLAS_COMPUTE_32F_FAST_TF32 in `cublaslt_gemm.cu` of 2.10 and 2.11): whoever
    set float32 gets it from other parts, unless Transformer Engine was asked for by name.

    Raises:
        ConfigError: what was asked for needs what is not here.
    """
    if precision.fp8 is Fp8.block_sim:
        return "simulation"
    if precision.fp8 in _RECIPES:
        if not installed.transformer_engine or precision.parts is Parts.plain:
            reason = (
                "precision.parts is plain"
                if installed.transformer_engine
                else f"it cannot be had here ({installed.engine_problem})"
            )
            raise ConfigError(
                f"precision.fp8 = {precision.fp8.value} is computed by Transformer Engine on a "
                f"GPU, and {reason}. On a GPU machine: pip install -e '.[gpu]' and "
                "precision.parts=auto. Without: precision=fp8_block_sim computes the numbers of "
                "fp8_block on any device, and precision=bf16 does without FP8"
            )
        if precision.fp8 in installed.unfit:
            raise ConfigError(
                f"precision.fp8 = {precision.fp8.value}: Transformer Engine cannot compute it on "
                f"this device ({installed.unfit[precision.fp8]}). fp8_block needs a Hopper GPU or "
                "later and a torch built for CUDA 12.9 or later, fp8_tensor Ada or later, mxfp8 "
                f"Blackwell. Here: precision={', '.join(fit_names(installed))}"
            )
        return "transformer_engine"
    if precision.parts is Parts.plain:
        return "plain"
    by_name = precision.parts is Parts.transformer_engine
    if by_name and not installed.transformer_engine:
        raise ConfigError(
            "precision.parts = transformer_engine, and it cannot be had here "
            f"({installed.engine_problem}). On a GPU machine: pip install -e '.[gpu]'. Without: "
            "precision.parts=auto"
        )
    if installed.transformer_engine and (by_name or precision.dtype is not DType.float32):
        return "transformer_engine"
    return "apex" if installed.apex else "plain"


def fit_names(installed: Installed) -> list[str]:
    """Files of conf/precision/ that this device can compute, of those that are not float32."""
    names = {Fp8.block: "fp8_block", Fp8.tensor: "fp8_tensor", Fp8.mxfp8: "mxfp8"}
    fit = [name for fp8, name in names.items() if fp8 not in installed.unfit]
    return [*(fit if installed.transformer_engine else []), "fp8_block_sim", "bf16"]


def packs_attention(precision: PrecisionConfig, installed: Installed, heads: Heads) -> bool:
    """Whether attention is Transformer Engine's.

    Raises:
        ConfigError: it was asked for and cannot be had; others are those of `parts_name`.
    """
    if precision.attention is AttentionBy.plain:
        return False
    by_name = precision.attention is AttentionBy.transformer_engine
    takes_16_bits = precision.dtype is DType.bfloat16
    is_wanted = takes_16_bits and parts_name(precision, installed) == "transformer_engine"
    if not (by_name or is_wanted):
        return False
    problem = installed.engine_problem or installed.attention_problem(heads)
    if by_name and problem:
        raise ConfigError(
            f"precision.attention = transformer_engine, and it cannot be had here ({problem}). On "
            "a GPU machine: pip install -e '.[gpu]'. PyTorch's, where Transformer Engine has none: "
            "precision.attention=auto"
        )
    return not problem


def layer_parts(precision: PrecisionConfig, installed: Installed, heads: Heads) -> LayerParts:
    """The parts for this precision on this machine; errors are those of `parts_name` and
    `packs_attention`."""
    parts = _linears_and_norms(precision, installed)
    if packs_attention(precision, installed, heads):
        return dataclasses.replace(parts, attention=_packed_attention())
    return parts


def _linears_and_norms(precision: PrecisionConfig, installed: Installed) -> LayerParts:
    match parts_name(precision, installed):
        case "simulation":
            return _simulation(precision)
        case "transformer_engine":
            return _transformer_engine()
        case "apex":
            return _apex()
    return plain_parts()


def plain_parts() -> LayerParts:
    """Megatron-Core's plain linears, and our norms."""
    return LayerParts(
        name="plain",
        column=ColumnParallelLinear,
        row=RowParallelLinear,
        replicated=ReplicatedLinear,
        norm=RmsNorm,
        latent_norm=LatentNorm,
    )


def fp8_fields(precision: PrecisionConfig) -> dict[str, Any]:
    """Fields of Megatron-Core's configuration, for FP8 by Transformer Engine."""
    if precision.fp8 not in _RECIPES:
        return {}
    fp8_recipe, fp8_format = _RECIPES[precision.fp8]
    return dict(fp8=fp8_format, fp8_recipe=fp8_recipe)


def plain_name(name: str) -> str:
    """The name that a parameter has in plain parts: grouped experts have one weight each, by
    number, where plain ones are modules of their own."""
    return re.sub(
        r"experts\.(linear_fc[12])\.weight(\d+)$", r"experts.local_experts.\2.\1.weight", name
    )


def _simulation(precision: PrecisionConfig) -> LayerParts:
    recipe = Fp8Recipe(power_of_two=precision.power_of_two_scales)
    if precision.gradient_blocks:
        recipe = Fp8Recipe(power_of_two=precision.power_of_two_scales, gradient_tile=(128, 128))

    def spec(module: type) -> ModuleSpec:
        return ModuleSpec(module=module, params={"recipe": recipe})

    return LayerParts(
        name="simulation",
        column=spec(Fp8ColumnLinear),
        row=spec(Fp8RowLinear),
        replicated=spec(Fp8ReplicatedLinear),
        norm=RmsNorm,
        latent_norm=LatentNorm,
    )


def _transformer_engine() -> LayerParts:
    """Not run on a GPU yet: docs/gpu.md."""
    from megatron.core.extensions.transformer_engine import (
        TEColumnParallelGroupedLinear,
        TEColumnParallelLinear,
        TELinear,
        TENorm,
        TERowParallelGroupedLinear,
        TERowParallelLinear,
    )
    from megatron.core.transformer.moe.experts import TEGroupedMLP

    class TeLatentNorm:
        """See `layers.LatentNorm`."""

        def __new__(cls, config: TransformerConfig, hidden_size: int, eps: float = 1e-6) -> Any:
            return TENorm(config, hidden_size, eps=1e-6)

    return LayerParts(
        name="transformer_engine",
        column=TEColumnParallelLinear,
        row=TERowParallelLinear,
        replicated=ModuleSpec(
            module=TELinear,
            params=dict(
                parallel_mode="duplicated",
                bias=False,
                skip_bias_add=False,
                skip_weight_param_allocation=False,
            ),
        ),
        norm=TENorm,
        latent_norm=TeLatentNorm,
        grouped=(TEGroupedMLP, TEColumnParallelGroupedLinear, TERowParallelGroupedLinear),
    )


def _packed_attention() -> ModuleSpec:
    """Not run on a GPU yet: docs/gpu.md."""
    from megatron.core.extensions.transformer_engine import TEDotProductAttention

    return ModuleSpec(module=PackedAttention, params={"attend": TEDotProductAttention})


def _apex() -> LayerParts:
    """Not run on a GPU yet: docs/gpu.md."""
    from apex.normalization import FusedRMSNorm

    class ApexNorm(FusedRMSNorm):
        def __init__(
            self, config: TransformerConfig, hidden_size: int, eps: float = 1e-6, **unused: Any
        ) -> None:
            super().__init__(hidden_size, eps=eps)
            self.to(config.params_dtype)
            self.weight.sequence_parallel = config.sequence_parallel

    class ApexLatentNorm(ApexNorm):
        """See `layers.LatentNorm`."""

        def __init__(self, config: TransformerConfig, hidden_size: int, **unused: Any) -> None:
            super().__init__(config, hidden_size, eps=1e-6)

    return LayerParts(
        name="apex",
        column=ColumnParallelLinear,
        row=RowParallelLinear,
        replicated=ReplicatedLinear,
        norm=ApexNorm,
        latent_norm=ApexLatentNorm,
    )


def _unfit_recipes() -> dict[Fp8, str]:
    from transformer_engine.pytorch.fp8 import (
        check_fp8_block_scaling_support,
        check_fp8_support,
        check_mxfp8_support,
    )

    answers = {
        Fp8.block: check_fp8_block_scaling_support(),
        Fp8.tensor: check_fp8_support(),
        Fp8.mxfp8: check_mxfp8_support(),
    }
    return {fp8: reason for fp8, (is_fit, reason) in answers.items() if not is_fit}


def _problem_of(*modules: str) -> str:
    """Why one of them cannot be imported; empty where all can."""
    for module in modules:
        try:
            importlib.import_module(module)
        except ImportError as error:
            return f"{type(error).__name__}: {error}"
    return ""
