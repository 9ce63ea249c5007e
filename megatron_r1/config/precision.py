"""`conf/precision/`: number formats of weights and activations."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from megatron_r1.errors import ConfigError


class DType(Enum):
    """Format of weights and activations. Gradients are reduced and Adam works in float32."""

    float32 = "float32"
    bfloat16 = "bfloat16"


class Logprobs(Enum):
    """How log-probabilities of tokens are made of hidden states."""

    fused = "fused"
    """A few tokens at a time: logits of the whole stream are never held, but for
    `keep_sampling_masks` under top-p or top-k (`r1_kernels/token_logprobs.py`)."""
    plain = "plain"
    """All logits, then their log-probabilities (`algos/logprobs.py`)."""


class Fp8(Enum):
    """In which 8-bit numbers the linears of attention and MLPs multiply; `models/precision.py`."""

    none = "none"
    block = "block"
    """Tiles of 1 x 128 and blocks of 128 x 128, by Transformer Engine: DeepSeek-V3's recipe."""
    tensor = "tensor"
    """One scale for each tensor, from its current numbers, by Transformer Engine."""
    mxfp8 = "mxfp8"
    """Tiles of 32 with 8-bit scales, by Transformer Engine on Blackwell."""
    block_sim = "block_sim"
    """What `block` computes, from real FP8 numbers multiplied in float32, on any device."""


class Parts(Enum):
    """Whose layers a model is built of."""

    auto = "auto"
    """Transformer Engine's on a GPU where it is installed, but for float32, which it multiplies in
    TF32; else Apex's norms on a GPU where it is; else plain ones."""
    plain = "plain"
    """Megatron-Core's plain layers and ours."""
    transformer_engine = "transformer_engine"
    """Transformer Engine's, whatever `dtype`, or an error. Products of float32 matrices keep 10
    bits of each factor (its `cublaslt_gemm.cu` asks for CUBLAS_COMPUTE_32F_FAST_TF32)."""


class AttentionBy(Enum):
    """Who attends between attention's linears, in training and prefill; decoding is ours."""

    auto = "auto"
    """Transformer Engine where the layers are its, `dtype` is bfloat16 and it has a fused one for
    the model's heads on this device; else PyTorch."""
    plain = "plain"
    """PyTorch. Under context parallelism each rank gathers keys and values of the whole stream."""
    transformer_engine = "transformer_engine"
    """Transformer Engine, or an error. Under context parallelism keys and values go round the
    ranks."""


@dataclass(kw_only=True)
class PrecisionConfig:
    """`precision=fp32`, the default everywhere; bf16, fp8_block, fp8_tensor, mxfp8 or
    fp8_block_sim."""

    name: str = "fp32"
    dtype: DType = DType.float32
    fp8: Fp8 = Fp8.none
    """The linears of attention and MLPs, experts among them. Embedding, head, router, norms, the
    attention between them and what joins prediction layers stay in `dtype`."""
    parts: Parts = Parts.auto
    attention: AttentionBy = AttentionBy.auto
    power_of_two_scales: bool = True
    """With `fp8 = block_sim`: FP8 scales are powers of two, as Transformer Engine's always are
    here."""
    gradient_blocks: bool = False
    """With `fp8 = block_sim`: gradients of activations in blocks of 128 x 128 in place of tiles. To
    see training suffer: DeepSeek-V3's did (arXiv:2412.19437 appendix B.2)."""
    float32_head: bool = False
    """The head's logits are computed and kept in float32, whatever `dtype`."""
    logprobs: Logprobs = Logprobs.fused

    @property
    def token_multiple(self) -> int:
        """Transformer Engine's FP8 products take whole tiles of tokens."""
        return 1 if self.fp8 in (Fp8.none, Fp8.block_sim) else 32

    @property
    def gathered_multiple(self) -> int:
        """The same for ranks that hold a part of a stream each. Transformer Engine gathers the
        parts in FP8, and with `fp8 = block` asserts that tokens and width of each are whole blocks
        (`assert_dim_for_all_gather` in its linears)."""
        return 128 if self.fp8 is Fp8.block else self.token_multiple

    def __post_init__(self) -> None:
        by_engine = self.attention is AttentionBy.transformer_engine
        if by_engine and self.dtype is not DType.bfloat16:
            raise ConfigError(
                f"precision.attention = transformer_engine with precision.dtype = "
                f"{self.dtype.value}: its fused attention takes numbers of 16 bits alone. Set "
                "precision.dtype=bfloat16, or precision.attention=auto"
            )
        if self.fp8 is not Fp8.none and self.dtype is not DType.bfloat16:
            raise ConfigError(
                f"precision.fp8 = {self.fp8.value} with precision.dtype = {self.dtype.value}: what "
                "is not FP8 is bfloat16 then. Set precision.dtype=bfloat16"
            )
        if self.fp8 is Fp8.block_sim:
            if self.parts is Parts.transformer_engine:
                raise ConfigError(
                    "precision.parts = transformer_engine with precision.fp8 = block_sim: the "
                    "simulation has layers of its own. Set precision.parts=auto, or precision.fp8="
                    "block, which it computes"
                )
            return
        for name, asked in (
            ("gradient_blocks = true", self.gradient_blocks),
            ("power_of_two_scales = false", not self.power_of_two_scales),
        ):
            if asked:
                raise ConfigError(
                    f"precision.{name} with precision.fp8 = {self.fp8.value}: only "
                    "fp8 = block_sim can do that"
                )
