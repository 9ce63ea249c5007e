"""Training in FP8 beside bfloat16: the same tiny model, data and order, and the losses of both.

    python tools/bench/fp8_loss.py [--model tiny_dense] [--steps 200] [--sequences 16]

Each line of --runs is a name and overrides of the configuration. The first is what the others are
compared with: mean training loss over all steps, over the last quarter, and the largest difference
of means over 20 steps, each relative. DeepSeek-V3 (arXiv:2412.19437 section 3.3) reports less than
0.25% between FP8 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.corpus import CorpusConfig
from megatron_r1.config.load import load_config
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.data.corpus import write_corpus
from megatron_r1.data.examples import response_row
from megatron_r1.data.gym_tasks import generate_problems
from megatron_r1.data.tokenizer import train_tokenizer
from megatron_r1.telemetry.table import render_table

RUNS = {
    "bf16": ["precision=bf16"],
    "bf16, another seed": ["precision=bf16", "run.seed=8"],
    "fp8_block_sim": ["precision=fp8_block_sim"],
    "fp8_block_sim, float32 scales": [
        "precision=fp8_block_sim",
        "precision.power_of_two_scales=false",
    ],
    "fp8_block_sim, gradients in 128 x 128": [
        "precision=fp8_block_sim",
        "precision.gradient_blocks=true",
    ],
}
WINDOW = 20


def examples_of(num_documents: int):
    """Worked sums, and a tokenizer for them: what `stage=tiny_base` trains on."""
    settings = {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}
    problems = generate_problems("chain_sum", settings, num_documents)
    documents = list(write_corpus(problems, config=CorpusConfig(), seed=1))
    with tempfile.TemporaryDirectory() as directory:
        texts = [text for document in documents for text in document]
        tokenizer = train_tokenizer(texts, vocab_size=512, directory=Path(directory) / "tokenizer")
    return [(response_row(prompt, response, tokenizer),) for prompt, response in documents]


def train(overrides: list[str], examples, arguments, host, layout_of) -> list[float]:
    """The loss of each step."""
    from megatron_r1.models.policy import Policy
    from megatron_r1.trainers.megatron_step import MegatronStep
    from megatron_r1.trainers.schedule import learning_rate
    from megatron_r1.trainers.supervised import draw_examples, own_share

    config = load_config([f"model={arguments.model}", "rollout.max_response_tokens=64", *overrides])
    layout = layout_of(config.parallel)
    policy = Policy(config.model, layout, config.precision, host, seed=config.run.seed)
    optimizer = OptimizerConfig(lr=arguments.lr, warmup_steps=20)
    megatron_step = MegatronStep(policy, optimizer)
    losses = []
    for step in range(arguments.steps):
        chosen = draw_examples(examples, step, arguments.sequences, seed=1)
        result = megatron_step.train_step(
            own_share(chosen, layout.dp),
            megatron_step.on_logprobs(sft_loss),
            lr=learning_rate(step, arguments.steps, optimizer),
            num_sequences=len(chosen),
        )
        losses.append(result.metrics["train/loss"])
    return losses


def compare(losses: list[float], baseline: list[float]) -> list[float]:
    """In percent: of all steps, of the last quarter, and the largest of a window."""

    def difference(part: slice) -> float:
        one, other = statistics.fmean(losses[part]), statistics.fmean(baseline[part])
        return 100 * (one / other - 1)

    windows = [slice(start, start + WINDOW) for start in range(len(losses) - WINDOW + 1)]
    return [
        difference(slice(None)),
        difference(slice(3 * len(losses) // 4, None)),
        max((difference(window) for window in windows), key=abs),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny_dense")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--sequences", type=int, default=16, help="documents in a step")
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, help="losses of every step, as JSON")
    arguments = parser.parse_args()

    from megatron_r1.platform.host import prepare, start_process_group

    host = prepare()
    start_process_group(host, timeout_minutes=10)
    from megatron_r1.parallel.layout import enter_layout

    layouts = {}

    def layout_of(parallel):
        if "layout" not in layouts:
            layouts["layout"] = enter_layout(parallel, seed=1)
        return layouts["layout"]

    examples = examples_of(2000)
    losses, rows = {}, []
    for name in arguments.runs:
        start_s = time.monotonic()
        losses[name] = train(RUNS[name], examples, arguments, host, layout_of)
        wall_s = time.monotonic() - start_s
        differences = compare(losses[name], losses[arguments.runs[0]])
        last = statistics.fmean(losses[name][3 * arguments.steps // 4 :])
        rows.append([name, f"{last:.4f}", *(f"{d:+.3f}%" for d in differences), f"{wall_s:.0f}"])
        print(rows[-1], flush=True)
        if arguments.out:
            arguments.out.write_text(json.dumps(losses))
    header = [
        "run",
        "loss, last quarter",
        "all steps",
        "last quarter",
        f"worst {WINDOW} steps",
        "s",
    ]
    print(render_table(header, rows))


if __name__ == "__main__":
    main()
