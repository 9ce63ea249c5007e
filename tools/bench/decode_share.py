"""Where the time of in-process decoding goes: inside the model's forward passes, or around them.

    python tools/bench/decode_share.py [model=tiny_v3] [overrides]

Decodes 16 prompts x 16 samples x 128 tokens on one rank, three times after a warm-up, and prints
tokens a second, the share of forward passes, and the share of what stands around them, part by
part.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch

from megatron_r1.config.load import load_config
from megatron_r1.platform.host import prepare, start_process_group, stop_process_group
from megatron_r1.telemetry.table import render_table
from megatron_r1.types import Prompt

NUM_PROMPTS, NUM_SAMPLES, NUM_TOKENS, NUM_RUNS = 16, 16, 128, 3


class NeverStops:
    """A tokenizer whose end-of-sequence token no model draws: every response has full length."""

    eos_id = -1

    def decode(self, ids: Any) -> str:
        return ""


def main(overrides: list[str]) -> None:
    host = prepare()
    start_process_group(host, timeout_minutes=5)
    from megatron_r1.models.policy import Policy
    from megatron_r1.parallel.layout import enter_layout
    from megatron_r1.rollout import decode_batch, inprocess
    from megatron_r1.rollout.engine import SamplingParams

    config = load_config(["model=tiny_v3", "rollout.max_response_tokens=128", *overrides])
    layout = enter_layout(config.parallel, seed=1)
    policy = Policy(config.model, layout, config.precision, host, seed=1)
    engine = inprocess.InProcessEngine(policy, NeverStops(), max_batch=256, max_prefill_tokens=4096)
    generator = torch.Generator().manual_seed(1)
    prompts = [
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
    params = SamplingParams(
        num_samples=NUM_SAMPLES,
        max_response_tokens=NUM_TOKENS,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        seed=1,
    )

    seconds: dict[str, float] = defaultdict(float)

    def timed(name: str, function: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            started_s = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                seconds[name] += time.perf_counter() - started_s

        return call

    policy.forward = timed("forward passes", policy.forward)
    inprocess.sample_tokens = timed("sampling", inprocess.sample_tokens)
    decode_batch.DecodeBatch.uniforms = timed("random numbers", decode_batch.DecodeBatch.uniforms)
    decode_batch.DecodeBatch.accept = timed("recording tokens", decode_batch.DecodeBatch.accept)
    decode_batch.DecodeBatch.newest = timed("next input", decode_batch.DecodeBatch.newest)
    decode_batch.DecodeBatch.start_responses = timed(
        "starting and refilling", decode_batch.DecodeBatch.start_responses
    )
    decode_batch.DecodeBatch.retire = timed("retiring", decode_batch.DecodeBatch.retire)

    list(engine.generate(prompts, params, weight_version=0))  # warm-up
    seconds.clear()
    started_s = time.perf_counter()
    for _ in range(NUM_RUNS):
        list(engine.generate(prompts, params, weight_version=0))
    total_s = time.perf_counter() - started_s

    num_tokens = NUM_RUNS * NUM_PROMPTS * NUM_SAMPLES * NUM_TOKENS
    print(
        f"{config.model.name}, {torch.get_num_threads()} threads: "
        f"{num_tokens / total_s:,.0f} tokens/s"
    )
    seconds["everything else"] = total_s - sum(seconds.values())
    rows = [
        [name, f"{s / total_s:.1%}"] for name, s in sorted(seconds.items(), key=lambda i: -i[1])
    ]
    print(render_table(["part of decoding", "share of time"], rows))
    stop_process_group()


if __name__ == "__main__":
    main(sys.argv[1:])
