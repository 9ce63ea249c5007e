"""Each kernel's time on a GPU beside a floor that is measured in the same run.

    python kernels/bench/kernels.py [--tokens 4096]

Memory-bound kernels: the bytes that have to move, at the bandwidth of a copy on this device.
Log-probabilities: the product of the hidden states with the head, alone, and for the backward pass
the two products that gradients cannot do without; ours takes five where memory is short, so that
"within 1.3 times of the product" is asked of the forward pass. Beside it stand PyTorch's own and
those of Cut Cross-Entropy and Liger where they are installed:

    pip install cut-cross-entropy liger-kernel

Times are medians over repetitions with data that does not fit the cache; errors are against the
reference on the same inputs. All that is timed is Triton's, whatever R1_KERNELS says.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[1]))

from r1_kernels.backend import Backend
from r1_kernels.fp8_blocks import TILE_OF_ACTIVATIONS, TILE_OF_WEIGHTS, dequantize, quantize
from r1_kernels.grpo_loss import grpo_loss
from r1_kernels.moe_permute import permute, place, unpermute
from r1_kernels.token_logprobs import token_logprobs

TRITON = dict(backend=Backend.triton)
Sum = Callable[[Tensor, Tensor, Tensor], Tensor]
"""hidden [T, D], head [V, D] and targets [T] to -sum log p(target)."""
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
        for power_of_two in (False, True):
            how = dict(tile=tile, power_of_two=power_of_two)
            codes, scales = quantize(matrix, **how, **TRITON)
            expected = quantize(matrix, **how, backend=Backend.reference)
            same = torch.equal(codes.view(torch.uint8), expected[0].view(torch.uint8))
            same = same and torch.equal(scales, expected[1])
            moved = 3 * matrix.numel() + 4 * scales.numel()
            ms = time_ms(lambda m=matrix, h=how: quantize(m, **h, **TRITON))
            label = f"quantise {name}{', powers of two' if power_of_two else ''}"
            print(row(label, ms, moved / rate, f"same bytes: {same}"))
        matrix = None
        numbers = dequantize(codes, scales, torch.bfloat16, tile=tile, **TRITON)
        plain = dequantize(codes, scales, torch.bfloat16, tile=tile, backend=Backend.reference)
        same = torch.equal(numbers, plain)
        ms = time_ms(
            lambda c=codes, s=scales, t=tile: dequantize(c, s, torch.bfloat16, tile=t, **TRITON)
        )
        print(row(f"dequantise {name}", ms, moved / rate, f"same: {same}"))


def logprobs(tokens: int) -> None:
    hidden = torch.randn(tokens, WIDTH, dtype=torch.bfloat16, device="cuda").requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, dtype=torch.bfloat16, device="cuda").mul_(0.02)
    weight.requires_grad_()
    targets = torch.randint(0, VOCAB, (tokens,), device="cuda")
    with torch.no_grad():
        product_ms = time_ms(lambda: hidden @ weight.T)
        exact, _ = token_logprobs(hidden, weight, targets, backend=Backend.reference)
    for name, negative_sum in {"ours": our_sum, **other_sums()}.items():

        def both(function: Sum = negative_sum) -> None:
            hidden.grad = weight.grad = None
            function(hidden, weight, targets).backward()

        # Some make gradients in their forward pass wherever an input asks for them.
        frozen = hidden.detach(), weight.detach(), targets
        found = negative_sum(*frozen)
        forward_ms = time_ms(lambda f=negative_sum, x=frozen: f(*x))
        error = f"relative error of the sum {abs(float(found / -exact.sum()) - 1):.1e}"
        print(row(f"log-probabilities, forward: {name}", forward_ms, product_ms, error))
        print(row(f"   and backward: {name}", time_ms(both), 3 * product_ms, ""))
    fused, _ = token_logprobs(hidden, weight, targets, **TRITON)
    print(f"largest error of one of ours: {float((fused - exact).abs().max()):.1e} nats")


def our_sum(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Of negative log-probabilities, as the others give it."""
    return -token_logprobs(hidden, weight, targets, **TRITON)[0].sum()


def other_sums() -> dict[str, Sum]:
    """The same by what else is installed; a line for what is not."""
    found: dict[str, Sum] = {}
    if hasattr(torch.nn, "LinearCrossEntropyOptions"):
        options = torch.nn.LinearCrossEntropyOptions()
        found["PyTorch's"] = partial(
            torch.nn.functional.linear_cross_entropy, reduction="sum", options=options
        )
    try:
        from cut_cross_entropy import linear_cross_entropy

        found["Cut Cross-Entropy"] = partial(linear_cross_entropy, reduction="sum")
    except ImportError:
        print("no Cut Cross-Entropy beside ours: pip install cut-cross-entropy")
    try:
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        found["Liger"] = lambda hidden, weight, targets: liger(weight, hidden, targets)
    except ImportError:
        print("no Liger beside ours: pip install liger-kernel")
    return found


def policy_loss(tokens: int, rate: float) -> None:
    count = 1024 * tokens
    tensors = [torch.randn(count, device="cuda") * 0.1 for _ in range(5)]
    mask = torch.rand(count, device="cuda") < 0.9
    settings = dict(eps_low=0.2, eps_high=0.2, kl_beta=0.001)
    results = [
        grpo_loss(*tensors, mask, backend=backend, **settings)[0]
        for backend in (Backend.triton, Backend.reference)
    ]
    ms = time_ms(lambda: grpo_loss(*tensors, mask, **TRITON, **settings))
    error = f"relative error {abs(results[0] / results[1] - 1):.1e}"
    print(row("policy loss with its gradient", ms, count * (5 * 4 + 1 + 4) / rate, error))


def permutation(tokens: int, rate: float) -> None:
    states = torch.randn(tokens, WIDTH, dtype=torch.bfloat16, device="cuda")
    experts = torch.rand(tokens, EXPERTS, device="cuda").topk(CHOSEN, dim=1).indices
    weights = torch.rand(tokens, CHOSEN, device="cuda")
    placement = place(experts, EXPERTS)
    rows = permute(states, placement, **TRITON)
    same = torch.equal(rows, permute(states, placement, backend=Backend.reference))
    moved = (states.numel() + rows.numel()) * 2
    ms = time_ms(lambda: permute(states, placement, **TRITON))
    print(row("tokens to experts", ms, moved / rate, f"same: {same}"))
    back, plain = (
        unpermute(rows, placement, weights, backend=backend)
        for backend in (Backend.triton, Backend.reference)
    )
    ms = time_ms(lambda: unpermute(rows, placement, weights, **TRITON))
    error = f"largest error {float((back - plain).abs().max()):.1e}"
    print(row("and back", ms, (CHOSEN + 1) * states.numel() * 2 / rate, error))


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
