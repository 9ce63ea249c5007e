"""FP8 tiles: one read and one write of each number.

    R rows   C columns   r, c tiles along them

A program holds one block of 128 x 128, or some rows of tiles of 1 x 128, in registers: the largest
number, the scale and the codes come from the same load.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from r1_kernels.reference.fp8_blocks import num_tiles
from r1_kernels.triton import is_interpreted
from r1_kernels.triton.casts import from_e4m3, narrow, to_e4m3

ROWS_OF_TILES = 32
"""Rows of 1-row tiles that one program holds. Not tuned on a GPU yet."""


@triton.jit
def _codes(x, scales, POWERS_OF_TWO: tl.constexpr, EMULATE: tl.constexpr):
    """Division as in PyTorch: Triton's own is a little off on a GPU. A power of two has an exact
    reciprocal, and a product costs a fraction of a division."""
    if POWERS_OF_TWO:
        y = x * tl.div_rn(tl.zeros_like(scales) + 1.0, scales)
    else:
        y = tl.div_rn(x, scales + tl.zeros_like(x))
    return to_e4m3(tl.where(y > 448.0, 448.0, tl.where(y < -448.0, -448.0, y)), EMULATE)


@triton.jit
def _scale_of(largest, POWER_OF_TWO: tl.constexpr):
    scale = tl.div_rn(largest, tl.zeros_like(largest) + 448.0)
    scale = tl.where(scale < 1.1754943508222875e-38, 1.1754943508222875e-38, scale)
    if POWER_OF_TWO:
        bits = scale.to(tl.int32, bitcast=True) + 0x007FFFFF
        scale = (bits & 0x7F800000).to(tl.float32, bitcast=True)
        # 2^119, unless it is infinite.
        scale = tl.where(
            (scale > 6.646139978924579e35) & (scale < float("inf")), 6.646139978924579e35, scale
        )
    return tl.where(largest == 0, 1.0, scale)


@triton.jit
def _quantize_kernel(
    matrix_ptr, codes_ptr, scales_ptr, kept_ptr, num_rows, num_columns, row_stride, column_stride,
    num_column_tiles,
    TILES: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
    POWER_OF_TWO: tl.constexpr, HAS_KEPT: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    """TILES tiles, one under the other, of TILE_ROWS x TILE_COLUMNS each."""
    tiles = tl.program_id(0) * TILES + tl.arange(0, TILES)
    column_tile = tl.program_id(1)
    in_tile = tl.arange(0, TILE_ROWS)
    rows = (tiles[:, None, None] * TILE_ROWS + in_tile[None, :, None]).to(tl.int64)
    # A transposed matrix has long steps from column to column.
    columns = (column_tile * TILE_COLUMNS + tl.arange(0, TILE_COLUMNS))[None, None, :].to(tl.int64)
    inside = (rows < num_rows) & (columns < num_columns)
    numbers = tl.load(
        matrix_ptr + rows * row_stride + columns * column_stride, mask=inside, other=0.0
    )
    x = numbers.to(tl.float32)
    # A NaN that `max` passed over would be lost; it is found by comparing.
    magnitude = tl.abs(x)
    largest = tl.max(tl.max(magnitude, axis=2), axis=1)
    has_nan = tl.max(tl.max((x != x).to(tl.int32), axis=2), axis=1)
    scale = _scale_of(largest, POWER_OF_TWO)
    scale = tl.where(has_nan > 0, float("nan"), scale)
    scale_places = tiles * num_column_tiles + column_tile
    tiles_inside = tiles * TILE_ROWS < num_rows
    if HAS_KEPT:
        kept = tl.load(kept_ptr + scale_places, mask=tiles_inside, other=1.0)
        usable = (kept > 0) & (kept < float("inf"))
        tried = tl.where(usable, kept, 1.0)
        again = from_e4m3(_codes(x, tried[:, None, None], False, EMULATE), EMULATE)
        again = narrow(again * tried[:, None, None], tl.bfloat16, EMULATE)
        differs = (again.to(tl.float32) != x).to(tl.int32)
        exact = tl.max(tl.max(differs, axis=2), axis=1) == 0
        scale = tl.where(usable & exact, kept, scale)
    codes = _codes(x, scale[:, None, None], POWER_OF_TWO and not HAS_KEPT, EMULATE)
    tl.store(codes_ptr + rows * num_columns + columns, codes, mask=inside)
    tl.store(scales_ptr + scale_places, scale, mask=tiles_inside)


@triton.jit
def _dequantize_kernel(
    codes_ptr, scales_ptr, matrix_ptr, num_rows, num_columns, row_stride, scale_row_stride,
    scale_column_stride,
    TILE_ROWS: tl.constexpr, TILE_COLUMNS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, EMULATE: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None].to(tl.int64)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :].to(tl.int64)
    inside = (rows < num_rows) & (columns < num_columns)
    codes = tl.load(codes_ptr + rows * row_stride + columns, mask=inside, other=0.0)
    places = (rows // TILE_ROWS) * scale_row_stride + (columns // TILE_COLUMNS) * (
        scale_column_stride
    )
    scales = tl.load(scales_ptr + places, mask=inside, other=0.0)
    numbers = from_e4m3(codes, EMULATE) * scales
    tl.store(
        matrix_ptr + rows * num_columns + columns,
        narrow(numbers, matrix_ptr.dtype.element_ty, EMULATE),
        mask=inside,
    )


def quantize(
    matrix_RC: Tensor,
    *,
    tile: tuple[int, int],
    power_of_two: bool = False,
    kept_rc: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    num_rows, num_columns = matrix_RC.shape
    shape = num_tiles(matrix_RC.shape, tile)
    codes_RC = torch.empty(matrix_RC.shape, dtype=torch.float8_e4m3fn, device=matrix_RC.device)
    scales_rc = torch.empty(shape, device=matrix_RC.device)
    tiles = max(ROWS_OF_TILES // tile[0], 1)
    if matrix_RC.numel():
        _quantize_kernel[(triton.cdiv(shape[0], tiles), shape[1])](
            matrix_RC,
            codes_RC,
            scales_rc,
            None if kept_rc is None else kept_rc.float().contiguous(),
            num_rows,
            num_columns,
            matrix_RC.stride(0),
            matrix_RC.stride(1),
            shape[1],
            TILES=tiles,
            TILE_ROWS=tile[0],
            TILE_COLUMNS=tile[1],
            POWER_OF_TWO=power_of_two,
            HAS_KEPT=kept_rc is not None,
            EMULATE=is_interpreted(),
            num_warps=8,
        )
    return codes_RC, scales_rc


def dequantize(
    codes_RC: Tensor, scales_rc: Tensor, dtype: torch.dtype, *, tile: tuple[int, int]
) -> Tensor:
    num_rows, num_columns = codes_RC.shape
    codes_RC = codes_RC if codes_RC.stride(1) == 1 else codes_RC.contiguous()
    matrix_RC = torch.empty(codes_RC.shape, dtype=dtype, device=codes_RC.device)
    rows, columns = 32, 128
    if codes_RC.numel():
        _dequantize_kernel[(triton.cdiv(num_rows, rows), triton.cdiv(num_columns, columns))](
            codes_RC,
            scales_rc,
            matrix_RC,
            num_rows,
            num_columns,
            codes_RC.stride(0),
            scales_rc.stride(0),
            scales_rc.stride(1),
            TILE_ROWS=tile[0],
            TILE_COLUMNS=tile[1],
            ROWS=rows,
            COLUMNS=columns,
            EMULATE=is_interpreted(),
        )
    return matrix_RC
