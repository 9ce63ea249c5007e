"""Where the time of in-process decoding goes: inside the model's forward passes, or around them.

    python tools/bench/decode_share.py [model=tiny_v3] [overrides]

Decodes 256 sequences (16 prompts x 16 samples) on one rank, three times after a warm-up, in two
ways: all 256 side by side to one length, and 64 at a time to lengths between 1 and 256, where
finished sequences leave the batch and waiting ones enter. Prints tokens a second and each part's
share of the time.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from megatron_r1.config.load import load_config
from megatron_r1.platform.host import prepare, start_process_group, stop_process_group
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.telemetry.table import render_table
from megatron_r1.types import Prompt

if TYPE_CHECKING:
    from megatron_r1.models.policy import Policy

NUM_PROMPTS, NUM_SAMPLES, NUM_RUNS = 16, 16, 3


@dataclass(frozen=True)
class Workload:
    """What is decoded."""

    name: str
    rows: int
    """Sequences side by side."""
    max_tokens: int
    eos_id: int


WORKLOADS = (
    Workload("equal lengths, 256 rows", rows=256, max_tokens=128, eos_id=-1),
    # A random model draws each of 512 tokens alike: 4 sequences in 10 end before token 256.
    Workload("mixed lengths, 64 rows", rows=64, max_tokens=256, eos_id=7),
)


@dataclass(frozen=True)
class EndsAt:
    """A tokenizer of which decoding needs only the end."""

    eos_id: int

    def decode(self, ids: Any) -> str:
        return ""


class Stopwatch:
    """Seconds inside each of some functions."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    def watch(self, owner: Any, function_name: str, label: str) -> None:
        function: Callable = getattr(owner, function_name)

        def call(*args: Any, **kwargs: Any) -> Any:
            started_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds[label] += time.perf_counter() - started_s

        setattr(owner, function_name, call)


def main(overrides: list[str]) -> None:
    host = prepare()
    start_process_group(host, timeout_minutes=5)
    from megatron_r1.models.policy import Policy
    from megatron_r1.parallel.layout import enter_layout
    from megatron_r1.rollout import decode_batch, inprocess

    config = load_config(["model=tiny_v3", "rollout.max_response_tokens=256", *overrides])
    layout = enter_layout(config.parallel, seed=1)
    policy = Policy(config.model, layout, config.precision, host, seed=1)
    stopwatch = Stopwatch()
    stopwatch.watch(policy, "forward", "forward passes")
    stopwatch.watch(inprocess, "sample_tokens", "sampling")
    for function, label in (
        ("uniforms", "random numbers"),
        ("accept", "recording tokens"),
        ("newest", "next input"),
        ("start_responses", "starting and refilling"),
        ("retire", "retiring"),
    ):
        stopwatch.watch(decode_batch.DecodeBatch, function, label)
    print(f"{config.model.name}, {torch.get_num_threads()} threads")
    for workload in WORKLOADS:
        measure(policy, workload, stopwatch)
    stop_process_group()


def measure(policy: Policy, workload: Workload, stopwatch: Stopwatch) -> None:
    """Decode the workload and print its table."""
    from megatron_r1.rollout.inprocess import InProcessEngine

    engine = InProcessEngine(
        policy, EndsAt(workload.eos_id), max_batch=workload.rows, max_prefill_tokens=4096
    )
    params = SamplingParams(
        num_samples=NUM_SAMPLES,
        max_response_tokens=workload.max_tokens,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        seed=1,
    )
    prompts = random_prompts()

    def decode() -> list[int]:
        groups = engine.generate(prompts, params, weight_version=0)
        return [len(rollout.token_ids) for group in groups for rollout in group.rollouts]

    lengths = decode()  # and warm up
    stopwatch.seconds.clear()
    started_s = time.perf_counter()
    for _ in range(NUM_RUNS):
        decode()
    total_s = time.perf_counter() - started_s
    shares = {**stopwatch.seconds}
    shares["everything else"] = total_s - sum(shares.values())
    print(
        f"\n{workload.name}: {len(lengths)} sequences of {min(lengths)} to {max(lengths)} tokens, "
        f"{NUM_RUNS * sum(lengths) / total_s:,.0f} tokens/s"
    )
    rows = [[name, f"{s / total_s:.1%}"] for name, s in sorted(shares.items(), key=lambda i: -i[1])]
    print(render_table(["part of decoding", "share of time"], rows))


def random_prompts() -> list[Prompt]:
    generator = torch.Generator().manual_seed(1)
    return [
        Prompt(
            id=str(i),
            draw=i,
            question="",
            text="",
            token_ids=tuple(torch.randint(0, 500, (26,), generator=generator).tolist()),
            answer="",
            grader="exact",
        )
        for i in range(NUM_PROMPTS)
    ]


if __name__ == "__main__":
    main(sys.argv[1:])
