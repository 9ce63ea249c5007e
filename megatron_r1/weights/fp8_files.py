"""FP8 weights with one scale for each block of 128 x 128: DeepSeek-V3's files.

A file holds codes (E4M3) and, beside `NAME`, `NAME_scale_inv`: float32, one number per block, by
which its codes are multiplied (V3 report, arXiv:2412.19437, section 3.3). Blocks at the right and
lower edge may be smaller.

    R rows   C columns   r = ceil(R / 128)   c = ceil(C / 128)

What comes back. Let w = bf16(code * scale). Rounding to bfloat16 moves w by at most 2^-9 of
itself, and half the distance between neighbouring E4M3 codes is at least 2^-5 of the larger one.
So `quantize` returns the same codes whenever it divides by the same scale, or by one that differs
by less than 2^-6, as long as no product is below bfloat16's smallest normal number (a scale of
2^-117 or more) or above its largest.

The scale itself has 24 significant bits and w has 8: it cannot be computed back from w. A block
whose largest code is 448, as in files that were quantized with scale = largest / 448, gets a scale
within 2^-8 of the old one and so the same codes. For the same scales they have to be kept beside
the weights and offered to `quantize`, which takes them where they reproduce the block bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK = 128
LARGEST = 448.0
"""The largest E4M3 number."""
SCALE_SUFFIX = "_scale_inv"


def is_quantized(name: str, shape: tuple[int, ...]) -> bool:
    """Whether DeepSeek-V3's files have this tensor, by Hugging Face's name, in FP8."""
    in_layer = ".self_attn." in name or ".mlp." in name
    return in_layer and len(shape) == 2 and not name.endswith(".mlp.gate.weight")


def num_blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of the scales of a matrix."""
    rows, columns = shape
    return -(-rows // BLOCK), -(-columns // BLOCK)


def dequantize(codes_RC: Tensor, scales_rc: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes times scales, multiplied in float32 and rounded once; [R, C] of `dtype`.

    A row of blocks at a time, so that the float32 numbers need little memory.
    """
    weight_RC = torch.empty(codes_RC.shape, dtype=dtype)
    for row, rows in _block_rows(codes_RC):
        codes = codes_RC[rows].float()
        weight_RC[rows] = codes.mul_(_over_columns(scales_rc[row], codes.shape[1]))
    return weight_RC


def quantize(weight_RC: Tensor, kept_rc: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Codes [R, C] and float32 scales [r, c] of a matrix.

    Args:
        kept_rc: scales that the matrix may have come from; one is taken where codes times it give
            the block's weights back bit for bit. Elsewhere, and for None, scale = largest / 448.
    """
    codes_RC = torch.empty(weight_RC.shape, dtype=torch.float8_e4m3fn)
    scales_rc = torch.empty(num_blocks(tuple(weight_RC.shape)))
    for row, rows in _block_rows(weight_RC):
        weight = weight_RC[rows]
        largest_c = _per_block(weight.float().abs().amax(dim=0)).amax(dim=1)
        scales_c = torch.where(largest_c > 0, largest_c / LARGEST, 1.0)
        if kept_rc is not None:
            scales_c = _kept_where_exact(weight, kept_rc[row], scales_c)
        codes_RC[rows] = _codes(weight, scales_c)
        scales_rc[row] = scales_c
    return codes_RC, scales_rc


def _kept_where_exact(weight: Tensor, kept_c: Tensor, scales_c: Tensor) -> Tensor:
    """The kept scale of each block that it reproduces, of one row of blocks."""
    usable_c = (kept_c > 0) & kept_c.isfinite()
    tried_c = torch.where(usable_c, kept_c, 1.0)
    again = dequantize(_codes(weight, tried_c), tried_c[None], weight.dtype)
    differs_c = _per_block((again != weight).any(dim=0)).any(dim=1)
    return torch.where(usable_c & ~differs_c, kept_c, scales_c)


def _codes(weight: Tensor, scales_c: Tensor) -> Tensor:
    """Nearest codes of one row of blocks. Torch's cast makes NaN of what is too large."""
    scaled = weight.float() / _over_columns(scales_c, weight.shape[1])
    return scaled.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def _over_columns(scales_c: Tensor, num_columns: int) -> Tensor:
    return scales_c.repeat_interleave(BLOCK)[:num_columns]


def _per_block(values_C: Tensor) -> Tensor:
    """[c, 128] of a value per column; the last block is filled up with zeros."""
    padding = -values_C.shape[0] % BLOCK
    return torch.nn.functional.pad(values_C, (0, padding)).view(-1, BLOCK)


def _block_rows(matrix_RC: Tensor) -> Iterator[tuple[int, slice]]:
    """Each row of blocks, and the rows of the matrix in it."""
    for row in range(num_blocks(tuple(matrix_RC.shape))[0]):
        yield row, slice(row * BLOCK, (row + 1) * BLOCK)
