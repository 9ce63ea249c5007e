"""Matrices to E4M3 codes with one scale for each tile, and back: what is to be computed.

    R rows   C columns   r, c tiles along them, the last of each perhaps cut short

A strip of whole tiles at a time, so that float32 copies need little memory.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LARGEST = 448.0
"""The largest E4M3 number."""
SMALLEST_SCALE = 2.0**-126
"""The smallest normal float32: a scale that were rounded to 0 could not be divided by."""
LARGEST_POWER = 2.0**119
"""The largest power of two that is a scale: 448 times the next one is beyond float32."""
STRIP_NUMBERS = 1 << 22


def quantize(
    matrix_RC: Tensor,
    *,
    tile: tuple[int, int],
    power_of_two: bool = False,
    kept_rc: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Codes [R, C] and float32 scales [r, c]; scale = largest / 448, and 1 for a tile of zeros.

    Args:
        power_of_two: the smallest power of two that is no less, up to LARGEST_POWER.
        kept_rc: one is taken where codes times it, in bfloat16, are the tile's numbers bit for bit.
    """
    codes_RC = torch.empty(matrix_RC.shape, dtype=torch.float8_e4m3fn, device=matrix_RC.device)
    scales_rc = torch.empty(num_tiles(matrix_RC.shape, tile), device=matrix_RC.device)
    for rows, tiles in _strips(matrix_RC, tile):
        strip = matrix_RC[rows]
        scales = _scales(_tiled(strip.float(), tile).abs().amax(dim=(1, 3)), power_of_two)
        if kept_rc is not None:
            scales = _kept_where_exact(strip, kept_rc[tiles], scales, tile)
        codes_RC[rows] = _codes(strip, scales, tile)
        scales_rc[tiles] = scales
    return codes_RC, scales_rc


def dequantize(
    codes_RC: Tensor, scales_rc: Tensor, dtype: torch.dtype, *, tile: tuple[int, int]
) -> Tensor:
    """Codes times scales, multiplied in float32 and rounded once; [R, C] of `dtype`."""
    matrix_RC = torch.empty(codes_RC.shape, dtype=dtype, device=codes_RC.device)
    for rows, tiles in _strips(codes_RC, tile):
        codes = codes_RC[rows]
        matrix_RC[rows] = codes.float().mul_(_spread(scales_rc[tiles], codes.shape, tile))
    return matrix_RC


def num_tiles(shape: tuple[int, ...], tile: tuple[int, int]) -> tuple[int, int]:
    """Shape of the scales of a matrix."""
    rows, columns = shape
    return -(-rows // tile[0]), -(-columns // tile[1])


def _scales(largest_rc: Tensor, power_of_two: bool) -> Tensor:
    scales_rc = (largest_rc / LARGEST).clamp(min=SMALLEST_SCALE)
    if power_of_two:
        # Any bit of the significand carries into the exponent.
        bits_rc = scales_rc.view(torch.int32) + 0x007FFFFF
        rounded_rc = (bits_rc & 0x7F800000).view(torch.float32).clamp(max=LARGEST_POWER)
        scales_rc = torch.where(scales_rc.isfinite(), rounded_rc, scales_rc)
    return torch.where(largest_rc == 0, 1.0, scales_rc)


def _kept_where_exact(
    strip: Tensor, kept_rc: Tensor, scales_rc: Tensor, tile: tuple[int, int]
) -> Tensor:
    usable_rc = (kept_rc > 0) & kept_rc.isfinite()
    tried_rc = torch.where(usable_rc, kept_rc, 1.0)
    codes = _codes(strip, tried_rc, tile)
    # As a file is read: rounded to bfloat16, whatever the numbers are kept in.
    again = codes.float().mul_(_spread(tried_rc, strip.shape, tile)).to(torch.bfloat16)
    differs_rc = _tiled((again.to(strip.dtype) != strip).float(), tile).amax(dim=(1, 3)).bool()
    return torch.where(usable_rc & ~differs_rc, kept_rc, scales_rc)


def _codes(strip: Tensor, scales_rc: Tensor, tile: tuple[int, int]) -> Tensor:
    """Nearest codes. What is too large is cut here: what torch's cast makes of it depends on its
    version and device (448 on a CPU in 2.13, of an infinity, too)."""
    scaled = strip.float() / _spread(scales_rc, strip.shape, tile)
    return scaled.clamp_(-LARGEST, LARGEST).to(torch.float8_e4m3fn)


def _spread(scales_rc: Tensor, shape: torch.Size, tile: tuple[int, int]) -> Tensor:
    """Of each tile its scale in each column, and in each row where that differs."""
    columns = scales_rc.repeat_interleave(tile[1], dim=1)[:, : shape[1]]
    if columns.shape[0] == 1:
        return columns
    return columns.repeat_interleave(tile[0], dim=0)[: shape[0]] if tile[0] > 1 else columns


def _tiled(strip: Tensor, tile: tuple[int, int]) -> Tensor:
    """[r, tile rows, c, tile columns], filled up with zeros."""
    rows, columns = num_tiles(strip.shape, tile)
    missing = (0, columns * tile[1] - strip.shape[1], 0, rows * tile[0] - strip.shape[0])
    padded = torch.nn.functional.pad(strip, missing)
    return padded.view(rows, tile[0], columns, tile[1])


def _strips(matrix_RC: Tensor, tile: tuple[int, int]) -> Iterator[tuple[slice, slice]]:
    """Rows of whole tiles, and their tiles."""
    num_rows, num_columns = matrix_RC.shape
    step = max(STRIP_NUMBERS // max(num_columns * tile[0], 1), 1)  # rows of tiles
    for first in range(0, -(-num_rows // tile[0]), step):
        yield slice(first * tile[0], (first + step) * tile[0]), slice(first, first + step)
