"""FP8 matrices with one scale for each tile of their numbers: to codes, and back.

DeepSeek-V3 (arXiv:2412.19437) section 3.3.2: activations in tiles of 1 x 128 (one token, 128
channels), weights in blocks of 128 x 128. Codes are E4M3; a number is its code times its scale. So
are the files of the model: codes beside `NAME_scale_inv`, float32, [ceil(R / 128), ceil(C / 128)],
which SGLang loads as they are. Tiles at the right and lower edge may be cut short.

    R rows   C columns   r, c tiles along them

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

from types import ModuleType

import torch
from torch import Tensor

from r1_kernels.backend import Backend, takes_triton
from r1_kernels.reference import fp8_blocks as reference
from r1_kernels.reference.fp8_blocks import LARGEST, num_tiles

__all__ = [
    "BLOCK",
    "LARGEST",
    "TILE_OF_ACTIVATIONS",
    "TILE_OF_WEIGHTS",
    "dequantize",
    "num_blocks",
    "num_tiles",
    "quantize",
]

BLOCK = 128
TILE_OF_WEIGHTS = (BLOCK, BLOCK)
TILE_OF_ACTIVATIONS = (1, BLOCK)
NUMBERS = (torch.float32, torch.bfloat16, torch.float16)
FIRST_WITH_FP8 = (8, 9)
"""CUDA's compute capability, Ada and Hopper: before it Triton has no conversion to E4M3."""


def quantize(
    matrix_RC: Tensor,
    kept_rc: Tensor | None = None,
    *,
    tile: tuple[int, int] = TILE_OF_WEIGHTS,
    power_of_two: bool = False,
    backend: Backend | str = Backend.auto,
) -> tuple[Tensor, Tensor]:
    """Codes [R, C] and float32 scales [r, c] of a matrix.

    Args:
        matrix_RC: float32, bfloat16 or float16. A tile with a NaN or an infinity comes out as NaN.
        kept_rc: scales that the matrix may have come from, of a dtype that `dequantize` takes; one
            is taken where codes times it, in bfloat16, are the tile's numbers bit for bit.
            Elsewhere, and for None, scale = largest / 448.
        power_of_two: the smallest power of two that is no less (the UE8M0 scales of DeepSeek-V3.1
            and of Transformer Engine's block scaling), up to 2^119: numbers beyond 448 * 2^119 are
            cut to that, and come back finite. Codes use at least half of the range.
        tile: TILE_OF_WEIGHTS or TILE_OF_ACTIVATIONS.
    Raises:
        ValueError: not a matrix, another tile, kept scales of another shape, or other dtypes.
    """
    shape = _shape_of_scales(matrix_RC, tile)
    if matrix_RC.dtype not in NUMBERS:
        raise ValueError(f"a matrix must be float32, bfloat16 or float16, got {matrix_RC.dtype}")
    if kept_rc is not None and tuple(kept_rc.shape) != shape:
        raise ValueError(
            f"kept scales of shape {list(kept_rc.shape)} for a matrix of {list(matrix_RC.shape)}, "
            f"which has {list(shape)} tiles of {tile}"
        )
    if kept_rc is not None:
        kept_rc = _float32(kept_rc, "kept scales")
    return _implementation(backend, matrix_RC).quantize(
        matrix_RC, tile=tile, power_of_two=power_of_two, kept_rc=kept_rc
    )


def dequantize(
    codes_RC: Tensor,
    scales_rc: Tensor,
    dtype: torch.dtype,
    *,
    tile: tuple[int, int] = TILE_OF_WEIGHTS,
    backend: Backend | str = Backend.auto,
) -> Tensor:
    """Codes, in E4M3, times scales, multiplied in float32 and rounded once; [R, C] of `dtype`.

    Args:
        scales_rc: float32, bfloat16, float16 or float8_e8m0fnu, whose codes are powers of two.
    Raises:
        ValueError: not a matrix of such codes, another tile, or scales of another shape or dtype.
    """
    shape = _shape_of_scales(codes_RC, tile)
    if codes_RC.dtype is not torch.float8_e4m3fn:
        raise ValueError(f"codes must be torch.float8_e4m3fn, got {codes_RC.dtype}")
    if tuple(scales_rc.shape) != shape:
        raise ValueError(
            f"scales of shape {list(scales_rc.shape)} for codes of {list(codes_RC.shape)}, which "
            f"have {list(shape)} tiles of {tile}"
        )
    scales_rc = _float32(scales_rc, "scales")
    return _implementation(backend, codes_RC).dequantize(codes_RC, scales_rc, dtype, tile=tile)


def num_blocks(shape: tuple[int, ...]) -> tuple[int, int]:
    """Shape of the scales of a weight."""
    return num_tiles(shape, TILE_OF_WEIGHTS)


def _float32(scales_rc: Tensor, name: str) -> Tensor:
    """A byte of E8M0 that is kept as uint8 would be taken for a number, and is refused."""
    if scales_rc.dtype not in (*NUMBERS, torch.float8_e8m0fnu):
        raise ValueError(
            f"{name} must be float32, bfloat16, float16 or float8_e8m0fnu, got {scales_rc.dtype}"
        )
    return scales_rc.float()


def _shape_of_scales(matrix_RC: Tensor, tile: tuple[int, int]) -> tuple[int, int]:
    if matrix_RC.dim() != 2:
        raise ValueError(f"expected a matrix, got shape {list(matrix_RC.shape)}")
    if tile not in (TILE_OF_ACTIVATIONS, TILE_OF_WEIGHTS):
        raise ValueError(
            f"tile must be {TILE_OF_ACTIVATIONS} or {TILE_OF_WEIGHTS}, got {tile}: no others are "
            "compiled"
        )
    return num_tiles(matrix_RC.shape, tile)


def _implementation(backend: Backend | str, tensor: Tensor) -> ModuleType:
    if takes_triton(backend, tensor, capability=FIRST_WITH_FP8):
        from r1_kernels.triton import fp8_blocks as compiled

        return compiled
    return reference
