"""Each kernel's time on a GPU beside a floor that is measured in the same run.

    python kernels/bench/kernels.py [--tokens 4096]

Memory-bound kernels: the bytes that have to move, at the bandwidth of a copy on this device.
Log-probabilities: the product of the hidden states with the head, alone, and for the backward pass
the two products that gradients cannot do without. Times are medians over repetitions with data that
does not fit the cache; errors are against the reference on the same inputs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

from r1_kernels.backend import Backend
from r1_kernels.fp8_blocks import TILE_OF_ACTIVATIONS, TILE_OF_WEIGHTS, dequantize, quantize
from r1_kernels.grpo_loss import grpo_loss
from r1_kernels.moe_permute import permute, place, unpermute
from r1_kernels.token_logprobs import token_logprobs

WIDTH, VOCAB, EXPERTS, CHOSEN = 7168, 129280, 256, 8
"""DeepSeek-V3's."""


def time_ms(function: Callable[[], object]) -> float:
    import triton

    return triton.testing.do_bench(function, warmup=200, rep=500, return_mode="median")


def copy_bytes_per_ms() -> float:
    """Read and written, by a copy of 2 GiB."""
    source = torch.randint(0, 255, (1 << 30,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / time_ms(lambda: target.copy_(source))


def row(name: str, ms: float, floor_ms: float, error: str) -> str:
    return f"{name:44} {ms:9.3f} ms   floor {floor_ms:9.3f} ms   {floor_ms / ms:6.1%}   {error}"


def quantisation(tokens: int, rate: float) -> None:
    for name, tile, num_rows in (
        ("activations, 1 x 128", TILE_OF_ACTIVATIONS, 8 * tokens),
        ("weights, 128 x 128", TILE_OF_WEIGHTS, 18432),
    ):
        matrix = torch.randn(num_rows, WIDTH, dtype=torch.bfloat16, device="cuda")
        expected = quantize(matrix, tile=tile, backend=Backend.reference)
        for power_of_two in (False, True):
            ms = time_ms(
                lambda m=matrix, t=tile, p=power_of_two: quantize(m, tile=t, power_of_two=p)
            )
            moved = 3 * matrix.numel() + 4 * expected[1].numel()
            codes, scales = quantize(matrix, tile=tile)
            same = torch.equal(codes.view(torch.uint8), expected[0].view(torch.uint8))
            label = f"quantise {name}{', powers of two' if power_of_two else ''}"
            same_scales = torch.equal(scales, expected[1])
            print(row(label, ms, moved / rate, f"same bytes: {same and same_scales}"))
        ms = time_ms(lambda t=tile, e=expected: dequantize(*e, torch.bfloat16, tile=t))
        print(row(f"dequantise {name}", ms, moved / rate, ""))


def logprobs(tokens: int) -> None:
    hidden = torch.randn(tokens, WIDTH, dtype=torch.bfloat16, device="cuda").requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, dtype=torch.bfloat16, device="cuda").mul_(0.02)
    weight.requires_grad_()
    targets = torch.randint(0, VOCAB, (tokens,), device="cuda")
    with torch.no_grad():
        product_ms = time_ms(lambda: hidden @ weight.T)
        forward_ms = time_ms(lambda: token_logprobs(hidden, weight, targets))
        fused, _ = token_logprobs(hidden, weight, targets)
        exact, _ = token_logprobs(hidden, weight, targets, backend=Backend.reference)
    error = f"largest error {(fused - exact).abs().max():.1e}"
    print(row("log-probabilities, forward", forward_ms, product_ms, error))

    def both() -> None:
        hidden.grad = weight.grad = None
        token_logprobs(hidden, weight, targets)[0].sum().backward()

    print(row("log-probabilities, forward and backward", time_ms(both), 3 * product_ms, ""))


def policy_loss(tokens: int, rate: float) -> None:
    count = 1024 * tokens
    tensors = [torch.randn(count, device="cuda") * 0.1 for _ in range(5)]
    mask = torch.rand(count, device="cuda") < 0.9
    settings = dict(eps_low=0.2, eps_high=0.2, kl_beta=0.001)
    results = [
        grpo_loss(*tensors, mask, backend=backend, **settings)[0]
        for backend in (Backend.triton, Backend.reference)
    ]
    ms = time_ms(lambda: grpo_loss(*tensors, mask, **settings))
    error = f"relative error {abs(results[0] / results[1] - 1):.1e}"
    print(row("policy loss with its gradient", ms, count * (5 * 4 + 1 + 4) / rate, error))


def permutation(tokens: int, rate: float) -> None:
    states = torch.randn(tokens, WIDTH, dtype=torch.bfloat16, device="cuda")
    experts = torch.rand(tokens, EXPERTS, device="cuda").topk(CHOSEN, dim=1).indices
    weights = torch.rand(tokens, CHOSEN, device="cuda")
    placement = place(experts, EXPERTS)
    rows = permute(states, placement)
    same = torch.equal(rows, permute(states, placement, backend=Backend.reference))
    moved = (states.numel() + rows.numel()) * 2
    ms = time_ms(lambda: permute(states, placement))
    print(row("tokens to experts", ms, moved / rate, f"same: {same}"))
    ms = time_ms(lambda: unpermute(rows, placement, weights))
    print(row("and back", ms, (CHOSEN + 1) * states.numel() * 2 / rate, ""))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tokens", type=int, default=4096)
    tokens = parser.parse_args().tokens
    if not torch.cuda.is_available():
        sys.exit("kernels are measured on a GPU, and there is none here")
    rate = copy_bytes_per_ms()
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}; a copy moves {rate / 1e6:.0f} GB/s")
    quantisation(tokens, rate)
    logprobs(tokens)
    policy_loss(tokens, rate)
    permutation(tokens, rate)


if __name__ == "__main__":
    main()
