"""Forward and backward of one DeepSeek-V3 layer: its time, and its share of the device's peak.

    python tools/bench/layer_mfu.py                          on a GPU: bf16 and fp8_block
    python tools/bench/layer_mfu.py --layer mixture --tokens 8192 --precision bf16
    python tools/bench/layer_mfu.py model.hidden_size=64 --tokens 64 --precision fp32

The layer is the model's own, between an embedding and a final norm, which are timed with it and do
not count as work; the embedding is small. Model FLOPs utilisation (PaLM, arXiv:2204.02311 appendix
B): six operations for each weight that a token meets, and attention's own, causal, over the time
and the device's peak in bfloat16, FP8's too. All --precision choices take turns, --rounds times;
figures are medians. FP8 numbers of weights are made anew in each pass, as in a step of one
micro-batch.

All choices are in memory together. A mixture layer has 256 experts: 11.5 billion weights, 23 GB in
bfloat16 and as much in gradients. On 80 GB give it one --precision a run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

from megatron_r1.command import run_command
from megatron_r1.config.load import load_config
from megatron_r1.config.model import DeepseekV3Config
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.errors import ConfigError
from megatron_r1.models.size import count_parameters
from megatron_r1.platform.host import prepare, start_process_group
from megatron_r1.telemetry.table import render_table

PEAK_TFLOPS = {"H100": 989.0, "H200": 989.0, "B200": 2250.0}
"""bfloat16, dense, from NVIDIA's data sheets."""
VOCABULARY = 512
ON_A_CPU = "model.hidden_size=64 --tokens 64 --precision fp32"
LAYERS = {"dense": 1, "mixture": 0}
"""Dense layers of the one."""


def layer_flops(model: DeepseekV3Config, seq_lengths: Sequence[int]) -> float:
    """Forward and backward of one layer over these sequences, nothing recomputed."""
    embeddings = 2 * model.vocab_size * model.hidden_size
    weights = count_parameters(model).active - embeddings
    key_width = model.qk_nope_head_dim + model.qk_rope_head_dim
    pairs = sum(length * (length + 1) // 2 for length in seq_lengths)
    attention = 2 * pairs * model.num_attention_heads * (key_width + model.v_head_dim)
    return 3 * (2 * sum(seq_lengths) * weights + attention)


def pass_of(
    precision: str, arguments: argparse.Namespace, host: Any, layout: Any
) -> tuple[Callable[[], None], float]:
    """A forward and backward pass to repeat, and its number of operations."""
    # Megatron-Core is imported when the platform is prepared.
    from megatron_r1.models.policy import Policy
    from megatron_r1.models.stream import TokenStream

    config = load_config(
        [
            *("model=deepseek_v3", "model.num_layers=1", "model.num_mtp_layers=0"),
            *(f"model.num_dense_layers={LAYERS[arguments.layer]}", f"precision={precision}"),
            *(f"model.vocab_size={VOCABULARY}", *arguments.overrides),
        ]
    )
    policy = Policy(config.model, layout, config.precision, host, seed=1)
    count, rest = divmod(arguments.tokens, arguments.length)
    lengths = (arguments.length,) * count + ((rest,) if rest else ())
    tokens_T = torch.randint(VOCABULARY, (arguments.tokens,), device=host.device)
    positions_T = torch.cat([torch.arange(n, device=host.device) for n in lengths])

    def run() -> None:
        stream = TokenStream(
            positions_T=positions_T,
            seq_lengths=lengths,
            balance_scale=1 / len(lengths),
            wants_hidden=True,
        )
        policy.renew_fp8_weights()  # as the first micro-batch of a step does
        policy.forward(tokens_T, stream).square().mean().backward()
        for _, weight in policy.named_parameters():
            weight.grad = None

    return run, layer_flops(config.model, lengths)


def seconds(run: Callable[[], None], host: Any) -> float:
    started_s = time.perf_counter()
    run()
    if host.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - started_s


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layer", choices=LAYERS, default="dense")
    parser.add_argument("--precision", nargs="+", help="on a GPU bf16 and fp8_block")
    parser.add_argument("--tokens", type=int, default=16384)
    parser.add_argument("--length", type=int, default=4096, help="tokens of a sequence")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--peak-tflops", type=float, help="of the device, bfloat16 and dense")
    parser.add_argument("overrides", nargs="*", help="of the configuration")
    arguments = parser.parse_intermixed_args()
    return run_command(lambda: measure(arguments))


def measure(arguments: argparse.Namespace) -> None:
    """Print the table.

    Raises:
        ConfigError: this device cannot compute what was asked for.
    """
    host = prepare()
    if not (host.is_cuda or arguments.precision):
        raise ConfigError(
            "a layer of DeepSeek-V3's width in bf16 and fp8_block wants a GPU, and there is none. "
            f"On a CPU say what to time: {ON_A_CPU}"
        )
    precisions = arguments.precision or ["bf16", "fp8_block"]
    start_process_group(host, timeout_minutes=10)
    device = torch.cuda.get_device_name() if host.is_cuda else "CPU"
    peak = arguments.peak_tflops or next(
        (tflops for name, tflops in PEAK_TFLOPS.items() if name in device), None
    )
    from megatron_r1.parallel.layout import enter_layout

    layout = enter_layout(ParallelConfig(), seed=1)
    passes = {name: pass_of(name, arguments, host, layout) for name in precisions}
    for run, _ in passes.values():
        seconds(run, host)  # compiles and allocates
    times_s = {name: [] for name in passes}
    for _ in range(arguments.rounds):
        for name, (run, _) in passes.items():
            times_s[name].append(seconds(run, host))
    print(
        f"{device}, torch {torch.__version__}, a {arguments.layer} layer, {arguments.tokens} tokens"
    )
    rows = []
    for name, (_, flops) in passes.items():
        median_s = statistics.median(times_s[name])
        tflops = flops / median_s / 1e12
        share = f"{tflops / peak:.1%}" if peak else "peak unknown: --peak-tflops"
        spread = f"{min(times_s[name]) * 1e3:.2f} to {max(times_s[name]) * 1e3:.2f}"
        rows.append([name, f"{median_s * 1e3:.2f}", spread, f"{tflops:.2f}", share])
    print(render_table(["precision", "ms", "of", "TFLOP/s", "MFU"], rows))


if __name__ == "__main__":
    sys.exit(main())
