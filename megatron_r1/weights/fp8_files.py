"""Which tensors DeepSeek-V3's files hold in FP8, and what their scales are called.

A file holds codes and, beside `NAME`, `NAME_scale_inv`: a number for each block of 128 x 128, by
which its codes are multiplied (`r1_kernels.fp8_blocks`).
"""

from __future__ import annotations

SCALE_SUFFIX = "_scale_inv"


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether DeepSeek-V3's files have this tensor, by Hugging Face's name, in FP8."""
    in_layer = ".self_attn." in name or ".mlp." in name
    return in_layer and len(shape) == 2 and not name.endswith(".mlp.gate.weight")
