"""FP8 blocks to bfloat16 and back: what comes back bit for bit, and when. Triton bit for bit beside
the definition."""

from __future__ import annotations

import pytest
import torch

from r1_kernels.backend import Backend
from r1_kernels.fp8_blocks import (
    TILE_OF_ACTIVATIONS,
    TILE_OF_WEIGHTS,
    dequantize,
    num_blocks,
    num_tiles,
    quantize,
)
from r1_kernels.reference.fp8_blocks import STRIP_NUMBERS

FP8 = torch.float8_e4m3fn


def random_codes(*shape: int, seed: int) -> torch.Tensor:
    """Every finite code, both zeros included, alike often."""
    generator = torch.Generator().manual_seed(seed)
    magnitude = torch.randint(0, 0x7F, shape, generator=generator, dtype=torch.uint8)
    sign = torch.randint(0, 2, shape, generator=generator, dtype=torch.uint8) << 7
    return (magnitude | sign).view(FP8)


def random_scales(*shape: int, seed: int) -> torch.Tensor:
    """All 24 bits of the significand, exponents from 2^-117 to 2^117."""
    generator = torch.Generator().manual_seed(seed)
    exponent = torch.randint(-117, 118, shape, generator=generator)
    return torch.ldexp(1 + torch.rand(shape, generator=generator), exponent)


def same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    return torch.equal(a.view(torch.uint8), b.view(torch.uint8))


def test_a_block_by_hand():
    # 200 columns are a block of 128 and one of 72; E4M3 counts 1, 1.125, ... and ends at 448.
    codes = torch.zeros(1, 200)
    codes[0, 0], codes[0, 1], codes[0, 199] = 448, 1.125, -2
    weight = dequantize(codes.to(FP8), torch.tensor([[0.5, 0.25]]), torch.bfloat16)
    assert weight[0, 0] == 224 and weight[0, 1] == 0.5625 and weight[0, 199] == -0.5
    again, scales = quantize(weight)
    # The second block's largest is 0.5: its scale becomes 0.5 / 448, its code -448.
    assert scales.tolist() == [[0.5, torch.tensor(0.5 / 448).item()]]
    assert again[0, 0].float() == 448 and again[0, 199].float() == -448


@pytest.mark.parametrize("shape", [(128, 128), (576, 384), (1, 1), (129, 257)])
@pytest.mark.parametrize("seed", range(4))
def test_kept_scales_give_every_byte_back(shape, seed):
    codes, scales = random_codes(*shape, seed=seed), random_scales(*num_blocks(shape), seed=seed)
    for dtype in (torch.bfloat16, torch.float32):
        # Read as bfloat16, then trained in `dtype`.
        weight = dequantize(codes, scales, torch.bfloat16).to(dtype)
        again, scales_again = quantize(weight, scales)
        assert torch.equal(scales_again, scales)
        assert same_bytes(again, codes)


def test_every_code_survives_every_rounding_of_its_scale():
    """All 254 finite codes against 400 significands."""
    codes = torch.arange(256, dtype=torch.uint8).view(FP8)
    codes = codes[codes.float().isfinite()][None].contiguous()
    for scale in torch.linspace(1, 2, 400).tolist():
        scales = torch.full((1, 2), scale * 2.0**-13)
        again, kept = quantize(dequantize(codes, scales, torch.bfloat16), scales)
        assert torch.equal(kept, scales) and same_bytes(again, codes), scale


@pytest.mark.parametrize("seed", range(8))
def test_without_kept_scales_blocks_that_reach_448_keep_their_codes(seed):
    codes, scales = random_codes(256, 300, seed=seed), random_scales(2, 3, seed=seed)
    codes[::128, ::128] = torch.tensor(-448.0).to(FP8)  # one code in each block
    again, scales_again = quantize(dequantize(codes, scales, torch.bfloat16))
    assert same_bytes(again, codes)
    assert ((scales_again / scales - 1).abs() <= 2.0**-8).all()


def test_scales_of_other_weights_are_not_taken():
    """A block that has been trained gets a scale of its own; its neighbour keeps the old one."""
    codes, scales = random_codes(128, 256, seed=0), torch.tensor([[3e-4, 5e-4]])
    codes[0, ::128] = torch.tensor(448.0).to(FP8)
    weight = dequantize(codes, scales, torch.bfloat16)
    weight[5, 7] = 0.3  # beyond 448 * 3e-4
    again, scales_again = quantize(weight, scales)
    assert scales_again[0, 1] == scales[0, 1]
    assert same_bytes(again[:, 128:].contiguous(), codes[:, 128:].contiguous())
    assert scales_again[0, 0] == torch.tensor(0.3, dtype=torch.bfloat16).float() / 448
    error = (dequantize(again, scales_again, torch.bfloat16) - weight)[:, :128].abs().max()
    assert error <= 0.3 * 2**-4  # half of the step of 32 below 448, and a rounding


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_kept_scales_are_replaced(bad, backend, device):
    """-1 would give a block of 2 back, too, and infinity a block of 0."""
    for number, scale in ((2.0, torch.tensor(2 / 448).item()), (0.0, 1.0)):
        weight = torch.full((4, 128), number, dtype=torch.bfloat16, device=device)
        codes, scales = quantize(weight, torch.tensor([[bad]], device=device), backend=backend)
        assert scales.tolist() == [[scale]]
        assert torch.equal(dequantize(codes, scales, torch.bfloat16), weight)


@pytest.mark.parametrize("tile", [TILE_OF_ACTIVATIONS, TILE_OF_WEIGHTS])
def test_strips_of_the_definition_are_its_parts(tile):
    """A matrix of more than STRIP_NUMBERS is worked on in strips: by 16,512 columns those of 254
    rows of tiles, or of one row of blocks."""
    x = torch.randn(256, 16512, generator=torch.Generator().manual_seed(0))
    x *= torch.arange(1, 257)[:, None]  # no scale is another's
    assert x.numel() > STRIP_NUMBERS
    codes, kept = quantize(x, tile=tile)
    x = dequantize(codes, kept, torch.bfloat16, tile=tile)
    assert not torch.equal(quantize(x, tile=tile)[1], kept)  # they are kept or lost
    for given in (None, kept):
        codes, scales = quantize(x, given, tile=tile, backend="reference")
        again = dequantize(codes, scales, torch.bfloat16, tile=tile, backend="reference")
        for start in (0, 128):
            rows = slice(start, start + 128)
            tiles = slice(start // tile[0], (start + 128) // tile[0])
            part = quantize(x[rows], None if given is None else given[tiles], tile=tile)
            assert same_bytes(codes[rows], part[0]) and torch.equal(scales[tiles], part[1])
            assert given is None or torch.equal(part[1], kept[tiles])
            assert torch.equal(again[rows], dequantize(*part, torch.bfloat16, tile=tile))


def test_a_block_of_zeros():
    codes, scales = quantize(torch.zeros(130, 130, dtype=torch.bfloat16))
    assert torch.equal(scales, torch.ones(2, 2))
    assert not codes.view(torch.uint8).any()


TILES = [TILE_OF_ACTIVATIONS, TILE_OF_WEIGHTS]
SHAPES = [(1, 1), (3, 128), (130, 257), (33, 200), (0, 128), (128, 0)]


def numbers(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    """From 2^-140 to 2^60, with zeros and rows of zeros; in bfloat16 from 2^-120, since Triton's
    interpreter takes its subnormal numbers for 0."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(shape, generator=generator)
    exponent = torch.randint(-12, 4, shape, generator=generator)
    x = torch.ldexp(x, exponent)
    x[2::7] *= 2.0**60
    x[4::7] *= 2.0 ** (-130 if dtype is torch.float32 else -100)
    x[5::7] = 0
    x.flatten()[::11] = 0
    return x.to(dtype)


@pytest.mark.parametrize("tile", TILES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("power_of_two", [False, True])
def test_triton_gives_the_same_bytes(tile, shape, power_of_two, device):
    for dtype in (torch.float32, torch.bfloat16):
        x = numbers(*shape, dtype=dtype).to(device)
        expected = quantize(x, tile=tile, power_of_two=power_of_two, backend=Backend.reference)
        actual = quantize(x, tile=tile, power_of_two=power_of_two, backend=Backend.triton)
        assert torch.equal(actual[1], expected[1])
        assert same_bytes(actual[0], expected[0])
        again = [
            dequantize(*expected, dtype, tile=tile, backend=backend)
            for backend in (Backend.reference, Backend.triton)
        ]
        assert torch.equal(*again)


def test_triton_reads_transposed_matrices_and_keeps_scales(device):
    codes, scales = random_codes(130, 257, seed=1), random_scales(2, 3, seed=1)
    codes, scales = codes.to(device), scales.to(device)
    weight = dequantize(codes, scales, torch.bfloat16)
    weight[0, 200] = 3.0  # one block that no longer comes from its scale
    for matrix, kept in ((weight, scales), (weight.T, scales.T), (weight.float(), scales)):
        expected = quantize(matrix, kept, backend=Backend.reference)
        actual = quantize(matrix, kept, backend=Backend.triton)
        assert torch.equal(actual[1], expected[1]) and same_bytes(actual[0], expected[0])
        assert (actual[1] == kept).sum() == 5
    apart = torch.nn.functional.pad(scales, (1, 2))[:, 1:-2]
    for given in (
        (codes, apart),
        (codes, scales.T.contiguous().T),
        (codes.T, scales.T),
        (codes[:, :200], apart[:, :2]),
    ):
        read = [dequantize(*given, torch.float32, backend=x) for x in ("triton", "reference")]
        assert torch.equal(*read)


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_powers_of_two_divide_by_a_kept_scale_that_is_none(backend, device):
    """The reciprocal of 2^-130 is beyond float32; codes times it are ordinary numbers."""
    codes = torch.tensor([[448.0, 256.0, -16.0] * 10], device=device).to(FP8)
    for kept in (2.0**-130, 0.7):
        scales = torch.tensor([[kept]], device=device)
        weight = dequantize(codes, scales, torch.bfloat16)
        again, found = quantize(weight, scales, power_of_two=True, backend=backend)
        assert torch.equal(found, scales) and same_bytes(again, codes)


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_every_float32_between_two_codes_goes_to_the_nearer(backend, device):
    """At scale 1, which a 448 in each tile makes: all midpoints, which go to the even code, and
    their neighbours."""
    codes = torch.arange(0x7F, dtype=torch.uint8).view(FP8).float()
    middle = (codes[1:] + codes[:-1]) / 2
    x = torch.stack([middle, middle.nextafter(codes[1:]), middle.nextafter(codes[:-1])])
    x = torch.nn.functional.pad(x, (0, 128 - x.shape[1]), value=448.0).to(device)
    again, scales = quantize(torch.cat([x, -x]), tile=TILE_OF_ACTIVATIONS, backend=backend)
    assert (scales == 1).all()
    places = torch.arange(0x7E, dtype=torch.uint8)
    bytes_ = again.cpu().view(torch.uint8)[:, :0x7E]
    for sign in (0, 1):
        even, above, below = bytes_[3 * sign : 3 * sign + 3]
        assert torch.equal(even, (places + places % 2) | (sign << 7))
        assert torch.equal(above, (places + 1) | (sign << 7))
        assert torch.equal(below, places | (sign << 7))


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_powers_of_two_by_hand(backend, device):
    # Largest 448: the scale is 1 already. A little more: 2. 3: 3 / 448 lies above 2^-8 = 0.0039.
    x = torch.zeros(4, 128)
    x[:, 5] = torch.tensor([448.0, 448.5, -3.0, 0.0])
    codes, scales = quantize(
        x.to(device), tile=TILE_OF_ACTIVATIONS, power_of_two=True, backend=backend
    )
    assert scales.flatten().tolist() == [1.0, 2.0, 2.0**-7, 1.0]
    # 448.5 / 2 is 224.25: the nearest code is 224. -3 * 128 = -384.
    assert codes[:, 5].float().tolist() == [448.0, 224.0, -384.0, 0.0]


@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_a_tile_that_is_not_finite_comes_out_as_nan(backend, power_of_two, device):
    x = torch.ones(3, 256, device=device)
    x[0, 3], x[1, 130] = float("nan"), float("inf")
    how = dict(tile=TILE_OF_ACTIVATIONS, backend=backend)
    again = dequantize(*quantize(x, power_of_two=power_of_two, **how), x.dtype, **how)
    assert again[0, :128].isnan().all() and again[1, 130].isnan()
    assert not again[1, 128:].isfinite().any()
    # 448 * float32(1 / 448) is 1 but for a rounding.
    assert torch.allclose(again[2], x[2]) and torch.allclose(again[0, 128:], x[0, 128:])


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_the_largest_numbers_stay_finite(backend, device):
    """Codes of 256 and more times a scale of 2^120 are beyond float32; at 2^119 numbers from
    448 * 2^119 on are cut to that, as beyond 448."""
    x = torch.zeros(4, 128, device=device)
    x[:, 0] = torch.tensor([torch.finfo(torch.float32).max, -3e38, 448 * 2.0**119, 2.0**127])
    how = dict(tile=TILE_OF_ACTIVATIONS, backend=backend)
    codes, scales = quantize(x, power_of_two=True, **how)
    assert (scales == 2.0**119).all()
    again = dequantize(codes, scales, torch.float32, **how)[:, 0]
    largest = 448 * 2.0**119  # 2.98e38
    assert again.tolist() == [largest, -largest, largest, 2.0**127]


@pytest.mark.parametrize("tile", TILES)
def test_float16_gives_the_same_bytes_with_kept_scales_too(tile, device):
    x = (torch.randn(130, 257, generator=torch.Generator().manual_seed(0)) * 1e-3).half()
    x[3, :130], x[5] = 0, 6e-8  # zeros, and float16's smallest
    x = x.to(device)
    kept = torch.full(num_tiles(x.shape, tile), 2.0**-12, device=device)
    exact, scales = quantize(x, tile=tile, power_of_two=True, backend=Backend.reference)
    x[:128] = dequantize(exact, scales, torch.float16, tile=tile)[:128]
    for given in (None, kept, scales):
        expected = quantize(x, given, tile=tile, backend=Backend.reference)
        actual = quantize(x, given, tile=tile, backend=Backend.triton)
        assert torch.equal(actual[1], expected[1]) and same_bytes(actual[0], expected[0])
    assert (actual[1] == scales).any()
    again = [
        dequantize(*expected, torch.float16, tile=tile, backend=backend)
        for backend in (Backend.reference, Backend.triton)
    ]
    assert torch.equal(*again)


@pytest.mark.parametrize("tile", TILES)
def test_hard_numbers_get_the_same_bytes_at_powers_of_two(tile, device):
    """The reference divides, Triton multiplies by the reciprocal: of numbers of every exponent
    from the least subnormal on, of midpoints between codes and their neighbours, beside scales of
    every exponent, and of tiles that are not finite."""
    generator = torch.Generator().manual_seed(0)
    shape = (1024 if tile[0] > 1 else 256, 1024)
    bits = torch.randint(0, 0x7F800000, shape, generator=generator, dtype=torch.int32)
    anywhere = bits.view(torch.float32) * torch.where(bits % 2 == 0, 1.0, -1.0)
    codes = torch.arange(0x7F, dtype=torch.uint8).view(FP8).float()
    middle = (codes[1:] + codes[:-1]) / 2
    hard = torch.cat([middle, middle.nextafter(codes[1:]), middle.nextafter(codes[:-1])])
    drawn = hard[torch.randint(0, len(hard), shape, generator=generator)]
    drawn[:, ::128] = 448.0  # so that the scale is the power below
    rows = torch.arange(shape[0]) // tile[0]
    near = drawn * torch.exp2((rows * 31 % 243 - 123).float())[:, None]
    for x in (anywhere, near, 0.75 * near):
        x[0, 130], x[-1, 900] = torch.inf, torch.nan
        expected, actual = (
            quantize(x.to(device), tile=tile, power_of_two=True, backend=backend)
            for backend in (Backend.reference, Backend.triton)
        )
        assert torch.equal(actual[1].nan_to_num(-1.0), expected[1].nan_to_num(-1.0))
        assert same_bytes(actual[0], expected[0])


def test_what_is_kept_is_within_the_format():
    """A code has 3 bits after the leading one: half a step is 2^-4 of a number, and below 2^-6 of
    the scale 2^-10 of it."""
    x = torch.randn(64, 300, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    for tile in TILES:
        for power_of_two in (False, True):
            codes, scales = quantize(x.float(), tile=tile, power_of_two=power_of_two)
            again = dequantize(codes, scales, torch.float32, tile=tile).double()
            scale = scales.repeat_interleave(tile[0], 0)[:64].repeat_interleave(tile[1], 1)
            bound = torch.maximum(x.abs() * 2.0**-4, scale[:, :300].double() * 2.0**-10)
            assert ((again - x).abs() <= bound * (1 + 1e-6)).all()
            assert ((again - x).abs() > bound / 2).any()


@pytest.mark.parametrize("shape,strides", [((2, 129), (1, 1 << 24)), ((129, 2), (1 << 24, 1))])
def test_a_column_or_row_may_begin_beyond_two_to_the_31(shape, strides, device):
    """The last of 129 that are 2^24 apart begins at 2^31. Memory that nobody touches costs
    nothing."""
    apart = torch.empty((1 << 31) + 2, dtype=torch.bfloat16, device=device)
    apart = apart.as_strided(shape, strides)
    apart.copy_(torch.randn(shape, generator=torch.Generator().manual_seed(0)))
    found = quantize(apart, backend=Backend.triton)
    expected = quantize(apart.contiguous(), backend=Backend.reference)
    assert all(same_bytes(a, b) for a, b in zip(found, expected, strict=True))
    bytes_apart = torch.empty((1 << 31) + 2, dtype=torch.uint8, device=device)
    bytes_apart = bytes_apart.as_strided(shape, strides)
    bytes_apart.copy_(expected[0].view(torch.uint8))
    again, wanted = (
        dequantize(codes, expected[1], torch.float32, backend=backend)
        for codes, backend in ((bytes_apart.view(FP8), "triton"), (expected[0], "reference"))
    )
    assert torch.equal(again, wanted)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match=r"expected a matrix, got shape \[3\]"):
        quantize(torch.zeros(3))
    codes, scales = quantize(torch.zeros(130, 130))
    with pytest.raises(ValueError, match=r"scales of shape \[2, 2\].*\[130, 2\] tiles"):
        dequantize(codes, scales, torch.float32, tile=TILE_OF_ACTIVATIONS)
    assert num_tiles((130, 130), TILE_OF_ACTIVATIONS) == (130, 2)


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_other_codes_and_other_tiles_are_refused_by_both(backend, device):
    matrix = torch.ones(4, 200, device=device)
    for tile in ((1, 100), (100, 128), (128, 1)):
        with pytest.raises(ValueError, match=rf"\(1, 128\) or \(128, 128\), got \({tile[0]}, "):
            quantize(matrix, tile=tile, backend=backend)
    codes, scales = quantize(matrix, backend=backend)
    with pytest.raises(ValueError, match=r"tile must be .* got \(1, 100\)"):
        dequantize(codes, scales, torch.float32, tile=(1, 100), backend=backend)
    for other in (codes.view(torch.uint8), matrix.to(torch.float8_e5m2), matrix):
        with pytest.raises(ValueError, match=f"must be torch.float8_e4m3fn, got {other.dtype}"):
            dequantize(other, scales, torch.float32, backend=backend)
    for dtype in (torch.uint8, torch.int32, torch.float64, FP8):
        other = torch.ones(1, 2, device=device).to(dtype)
        with pytest.raises(ValueError, match=f"scales must be .*e8m0fnu, got {dtype}"):
            dequantize(codes, other, torch.float32, backend=backend)
        with pytest.raises(ValueError, match=f"kept scales must be .*e8m0fnu, got {dtype}"):
            quantize(matrix, other, backend=backend)
    for dtype in (torch.int32, torch.bool, torch.float64, torch.complex64):
        with pytest.raises(ValueError, match=f"float32, bfloat16 or float16, got {dtype}"):
            quantize(matrix.to(dtype), backend=backend)


@pytest.mark.parametrize("backend", [Backend.reference, Backend.triton])
def test_scales_may_be_narrow_floats_and_exponents_alone(backend, device):
    """A byte of E8M0 is a power of two; read as a number, 2 would be 128."""
    codes = random_codes(3, 200, seed=0).to(device)
    scales = torch.tensor([[2.0, 0.25]], device=device)
    expected = dequantize(codes, scales, torch.bfloat16, backend=backend)
    for dtype in (torch.float8_e8m0fnu, torch.bfloat16, torch.float16):
        narrow = scales.to(dtype)
        assert torch.equal(dequantize(codes, narrow, torch.bfloat16, backend=backend), expected)
        again, kept = quantize(expected, narrow, backend=backend)
        assert same_bytes(again, codes) and kept.dtype is torch.float32
        assert torch.equal(kept, scales)
