"""Conversions to narrow floats, rounded to the nearest and ties to even, as PyTorch's are.

A GPU has instructions for that. Triton's interpreter (3.7) rounds ties away from zero, loses the
carry into the exponent and knows no NaN in FP8, so for it, with EMULATE, they are spelled out in
bits.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def to_e4m3(x, EMULATE: tl.constexpr):
    """Of float32 numbers within +-448, or NaN."""
    if not EMULATE:
        return x.to(tl.float8e4nv)
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # 20 of 23 bits are dropped; half of the last kept place is added, less one bit if it is even.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - (120 << 3)
    # Below 2^-6 codes count 2^-9; float32 itself rounds to that beside 1.5 * 2^14.
    small = (((tl.abs(x) + 24576.0) - 24576.0) * 512.0).to(tl.int32)
    code = tl.where(tl.abs(x) < 0.015625, small, normal)
    code = tl.where(x != x, 0x7F, code) | ((bits >> 24) & 0x80)
    return code.to(tl.uint8).to(tl.float8e4nv, bitcast=True)


@triton.jit
def from_e4m3(codes, EMULATE: tl.constexpr):
    """To float32, exactly."""
    x = codes.to(tl.float32)
    if EMULATE:
        magnitude = codes.to(tl.uint8, bitcast=True) & 0x7F
        x = tl.where(magnitude == 0x7F, float("nan"), x)
    return x


@triton.jit
def narrow(x, dtype: tl.constexpr, EMULATE: tl.constexpr):
    """Of float32 to float32, bfloat16 or float16."""
    if EMULATE and dtype == tl.bfloat16:
        bits = x.to(tl.int32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & -65536
        x = tl.where(x != x, x, bits.to(tl.float32, bitcast=True))
    return x.to(dtype)
