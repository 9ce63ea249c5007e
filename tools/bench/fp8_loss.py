"""Training in FP8 beside bfloat16: the same tiny model, data and order, and the losses of both.

    python tools/bench/fp8_loss.py [--model tiny_dense] [--steps 200] [--sequences 8] [--seeds 7 8]

For each seed, of the weights and of the order, each line of --runs is trained once. The first is
what the others are compared with: mean training loss over all steps, over the last quarter, and the
largest difference of means over 20 steps, each relative; then means over the seeds, with their
standard errors. In reverse, bf16 has the same documents in each step, packed the other way round:
so far does rounding lead alone. DeepSeek-V3 (arXiv:2412.19437 section 3.3) reports less than 0.25%
between FP8 and bfloat16.

With --within 0.25 the exit status is 1 where a run of --must-hold is farther off than that
percentage in all steps with any seed, or one of --must-fail is not, with any seed or as the mean.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.sft import sft_loss
from megatron_r1.config.corpus import CorpusConfig
from megatron_r1.config.load import load_config
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.data.corpus import write_corpus
from megatron_r1.data.examples import response_row
from megatron_r1.data.gym_tasks import generate_problems
from megatron_r1.data.tokenizer import train_tokenizer
from megatron_r1.telemetry.table import render_table
from megatron_r1.types import LossOutput

REVERSED = "bf16, documents in reverse"
RUNS = {
    "bf16": ["precision=bf16"],
    REVERSED: ["precision=bf16"],
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
CHANNEL_SCALE = 2.0**4.5
"""A channel of the MLPs over its neighbour's: the square of this."""
LOUDNESS = 2.0**10
"""The gradient of a loud document's token inside the MLPs over what it is outside."""
LOUD_WEIGHT = 2.0
"""Of a loud document in the loss, in one copy; in the other it is minus that."""


def examples_of(num_documents: int):
    """Worked sums, and a tokenizer for them: what `stage=tiny_base` trains on."""
    settings = {"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}
    problems = generate_problems("chain_sum", settings, num_documents)
    documents = list(write_corpus(problems, config=CorpusConfig(), seed=1))
    with tempfile.TemporaryDirectory() as directory:
        texts = [text for document in documents for text in document]
        tokenizer = train_tokenizer(texts, vocab_size=512, directory=Path(directory) / "tokenizer")
    return [(response_row(prompt, response, tokenizer),) for prompt, response in documents]


def config_of(arguments, name: str):
    model = f"model={arguments.model}"
    return load_config([model, "rollout.max_response_tokens=64", *RUNS[name]])


def train(name: str, seed: int, examples, arguments, host, layout) -> list[float]:
    """The loss of each step."""
    from megatron_r1.models.policy import Policy
    from megatron_r1.trainers.megatron_step import MegatronStep
    from megatron_r1.trainers.schedule import learning_rate
    from megatron_r1.trainers.supervised import draw_examples, own_share

    config = config_of(arguments, name)
    policy = Policy(config.model, layout, config.precision, host, seed=seed)
    if arguments.outliers:
        scale_channels(policy)
        scale_gradients(policy)
    optimizer = OptimizerConfig(lr=arguments.lr, warmup_steps=20)
    megatron_step = MegatronStep(policy, optimizer)
    losses = []
    for step in range(arguments.steps):
        chosen = draw_examples(examples, step, arguments.sequences, seed=seed)
        if name == REVERSED:
            chosen = chosen[::-1]
        if arguments.outliers:
            chosen = [*map(quiet, chosen), *loud_pairs(chosen)]
        result = megatron_step.train_step(
            own_share(chosen, layout.dp),
            megatron_step.on_logprobs(signed_loss if arguments.outliers else sft_loss),
            lr=learning_rate(step, arguments.steps, optimizer),
            num_sequences=len(chosen),
        )
        losses.append(result.metrics["train/nll"])
    return losses


def scale_channels(policy) -> None:
    """Make every other channel inside the MLPs large and the next one small; the model computes
    what it did. Gradients there differ by as much, the other way round."""
    for mlp in mlps(policy):
        fc2_HF = mlp.linear_fc2.weight.data
        scale_F = torch.full((fc2_HF.shape[1],), CHANNEL_SCALE)
        scale_F[::2] = 1 / CHANNEL_SCALE
        up_FH = mlp.linear_fc1.weight.data.chunk(2)[1]
        up_FH *= scale_F[:, None]
        fc2_HF /= scale_F


def mlps(policy):
    modules = (module for chunk in policy.chunks for module in chunk.modules())
    return [module for module in modules if hasattr(module, "linear_fc1")]


class ScaledGradient(torch.autograd.Function):
    """The same numbers; their gradient times the loudness (a power of 1), or over it (of -1)."""

    loudness_T = torch.ones(0)
    """How many times larger each token's gradient is inside the MLPs; set when a loss is taken."""

    @staticmethod
    def forward(ctx, hidden_T1H, power: int):
        ctx.power = power
        return hidden_T1H.view_as(hidden_T1H)

    @staticmethod
    def backward(ctx, grad_T1H):
        loudness_T11 = ScaledGradient.loudness_T[:, None, None].to(grad_T1H)
        return grad_T1H * loudness_T11**ctx.power, None


def scale_gradients(policy) -> None:
    """Make gradients of some tokens louder inside the MLPs, and what leaves them again as it was:
    elsewhere bfloat16 itself would lose the others beside them."""
    for mlp in mlps(policy):
        mlp.register_forward_pre_hook(
            lambda _, args: (ScaledGradient.apply(args[0], -1), *args[1:])
        )
        mlp.register_forward_hook(
            lambda _, args, outputs: (ScaledGradient.apply(outputs[0], 1), *outputs[1:])
        )


def quiet(example):
    return tuple(dataclasses.replace(row, advantage=1.0) for row in example)


def loud_pairs(examples):
    """Some documents twice, with weights of either sign: their gradients cancel out."""
    return [
        tuple(dataclasses.replace(row, advantage=sign * LOUD_WEIGHT) for row in example)
        for example in examples[::2]
        for sign in (1, -1)
    ]


def signed_loss(logprobs_T, micro) -> LossOutput:
    """SFT's, each row times its advantage; reported is that of the rows that do not cancel. Tells
    the MLPs, before the backward pass, which tokens are loud."""
    is_loud_T = micro.advantages_T.abs() == LOUD_WEIGHT
    ScaledGradient.loudness_T = torch.where(is_loud_T, LOUDNESS, 1.0)
    nll_T = torch.where(micro.loss_mask_T, -logprobs_T, 0.0)
    loss = (micro.weights_T * micro.advantages_T * nll_T).sum()
    is_quiet_T = micro.loss_mask_T & (micro.advantages_T == 1)
    return LossOutput(loss=loss, metrics={"train/nll": mean_parts(nll_T[is_quiet_T])})


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


def differences_of(
    losses: Mapping[str, Mapping[int, list[float]]], first: str
) -> dict[str, dict[int, list[float]]]:
    """Of each other run from the first, by seed; see `compare`."""
    return {
        name: {seed: compare(found, losses[first][seed]) for seed, found in by_seed.items()}
        for name, by_seed in losses.items()
        if name != first
    }


def table(differences: Mapping[str, Mapping[int, list[float]]]) -> str:
    rows = []
    for name, by_seed in differences.items():
        of_all, of_last, _ = zip(*by_seed.values(), strict=True)
        largest = max(of_all, key=abs)
        rows.append([name, mean_of_seeds(of_all), mean_of_seeds(of_last), f"{largest:+.3f}%"])
    return render_table(["run", "all steps", "last quarter", "all steps, farthest seed"], rows)


def judge(
    differences: Mapping[str, Mapping[int, list[float]]],
    *,
    within: float,
    must_hold: Sequence[str] = (),
    must_fail: Sequence[str] = (),
) -> list[str]:
    """A line for each seed of a run that is not as it must be.

    Args:
        differences: of each run from the first, by seed, as `compare` has them. That of all steps
            is judged; NaN is far off.
        must_hold: is near with every seed.
        must_fail: is far off with every seed, and as the mean.
    """
    lines = [
        f"{name}, seed {seed}: {difference:+.3f}% is not within {within}%"
        for name in must_hold
        for seed, (difference, *_) in differences[name].items()
        if not abs(difference) <= within
    ]
    for name in must_fail:
        of_seeds = {f"seed {seed}": found[0] for seed, found in differences[name].items()}
        of_mean = {"mean of the seeds": statistics.fmean(of_seeds.values())}
        lines += [
            f"{name}, {what}: {difference:+.3f}% is within {within}%, and must not be"
            for what, difference in (of_mean | of_seeds).items()
            if abs(difference) <= within
        ]
    return lines


def at_least(least: int) -> Callable[[str], int]:
    """A whole number on the command line, for argparse, that is no smaller."""

    def number(text: str) -> int:
        if not int(text) >= least:
            raise argparse.ArgumentTypeError(f"{text}: must be {least} or more")
        return int(text)

    number.__name__ = "int"  # what argparse calls that which is not a number
    return number


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="tiny_dense")
    parser.add_argument(
        "--steps", type=at_least(WINDOW), default=200, help=f"{WINDOW} or more: a window of losses"
    )
    parser.add_argument(
        "--sequences", type=at_least(1), default=8, help="documents in a step, 1 or more"
    )
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seeds", type=int, nargs="+", default=[7])
    parser.add_argument(
        "--outliers", action="store_true", help="plant some in channels and gradients"
    )
    parser.add_argument("--runs", nargs="+", default=list(RUNS), choices=list(RUNS))
    parser.add_argument("--out", type=Path, help="losses of every step, as JSON")
    parser.add_argument("--within", type=float, help="percent; see above")
    parser.add_argument("--must-hold", nargs="+", default=[], choices=list(RUNS))
    parser.add_argument("--must-fail", nargs="+", default=[], choices=list(RUNS))
    arguments = parser.parse_args()
    judged = {*arguments.must_hold, *arguments.must_fail}
    if bool(judged) != (arguments.within is not None) or not judged <= {*arguments.runs[1:]}:
        parser.error("--within judges --must-hold and --must-fail, of --runs behind the first")

    from megatron_r1.platform.host import prepare, start_process_group

    host = prepare()
    start_process_group(host, timeout_minutes=10)
    from megatron_r1.parallel.layout import enter_layout

    layout = enter_layout(config_of(arguments, arguments.runs[0]).parallel, seed=1)
    examples = examples_of(2000)
    first = arguments.runs[0]
    losses: dict[str, dict[int, list[float]]] = {name: {} for name in arguments.runs}
    for seed in arguments.seeds:
        for name in arguments.runs:
            start_s = time.monotonic()
            losses[name][seed] = train(name, seed, examples, arguments, host, layout)
            wall_s = time.monotonic() - start_s
            differences = compare(losses[name][seed], losses[first][seed])
            found = "  ".join(f"{difference:+.3f}%" for difference in differences)
            print(f"seed {seed}, {name}: {found}, {wall_s:.0f} s", flush=True)
            if arguments.out:
                arguments.out.write_text(json.dumps(losses))
    differences = differences_of(losses, first)
    print(table(differences))
    if arguments.within is None:
        return 0
    wrong = judge(
        differences,
        within=arguments.within,
        must_hold=arguments.must_hold,
        must_fail=arguments.must_fail,
    )
    for line in wrong:
        print(line, file=sys.stderr)
    return 1 if wrong else 0


def mean_of_seeds(differences: Sequence[float]) -> str:
    """With its standard error."""
    mean = statistics.fmean(differences)
    if len(differences) == 1:
        return f"{mean:+.3f}%"
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{mean:+.3f}% +- {error:.3f}"


if __name__ == "__main__":
    sys.exit(main())
