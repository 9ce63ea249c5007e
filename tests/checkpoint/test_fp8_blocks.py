"""FP8 blocks to bfloat16 and back: what comes back bit for bit, and when."""

from __future__ import annotations

import pytest
import torch

from megatron_r1.checkpoint.fp8_blocks import dequantize, num_blocks, quantize

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
        weight = dequantize(codes, scales, torch.bfloat16).to(
            dtype
        )  # read, then trained in `dtype`
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


@pytest.mark.parametrize("bad", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_kept_scales_are_replaced(bad):
    weight = torch.full((128, 128), 2.0, dtype=torch.bfloat16)
    codes, scales = quantize(weight, torch.tensor([[bad]]))
    assert torch.equal(dequantize(codes, scales, torch.bfloat16), weight)


def test_a_block_of_zeros():
    codes, scales = quantize(torch.zeros(130, 130, dtype=torch.bfloat16))
    assert torch.equal(scales, torch.ones(2, 2))
    assert not codes.view(torch.uint8).any()
