"""Make a training set out of data files: drop duplicates, evaluation questions and bad difficulty.

    python tools/curate.py raw/*.jsonl.gz --output data/train.jsonl --against evals/*.jsonl
    python tools/curate.py data/train.jsonl --output data/rl.jsonl --rollouts runs/r1/pass_counts/*

Prints what each step dropped and why; data/train.dropped.jsonl has every one by file and line, and
data/train.manifest.json the counts, the configuration and the hashes of all files. The schema of
lines is in docs/data.md.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from megatron_r1.command import run_command  # noqa: E402
from megatron_r1.config.curation import (  # noqa: E402
    CurationConfig,
    DecontaminationConfig,
    DifficultyConfig,
    NearDuplicateConfig,
)
from megatron_r1.config.data import BadLines  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    defaults = CurationConfig()
    contamination, difficulty = defaults.decontamination, defaults.difficulty
    add = parser.add_argument
    add("inputs", type=Path, nargs="+", metavar="FILE", help=".jsonl, .jsonl.gz, .csv, .parquet")
    add("--output", type=Path, required=True, metavar="OUT.jsonl")
    add("--against", nargs="+", default=[], metavar="FILE", help="evaluation sets to keep out")
    add("--ngram", type=int, default=contamination.ngram_words, help="words in a row (default: 10)")
    add(
        "--max-items",
        type=int,
        default=contamination.max_items,
        help="an n-gram of more evaluation records is a template's (default 0: none is)",
    )
    add("--signs", action="store_true", help="signs count as words: sums differ in little else")
    add("--rollouts", nargs="+", default=[], metavar="FILE", help="a run's pass_counts/")
    add("--min-pass-rate", type=float, default=difficulty.min_pass_rate)
    add("--max-pass-rate", type=float, default=difficulty.max_pass_rate)
    add("--min-samples", type=int, default=difficulty.min_samples)
    add(
        "--near",
        type=float,
        default=defaults.near.threshold,
        help="similarity of near duplicates; 1 keeps them (default: 0.8)",
    )
    add(
        "--bad-lines",
        type=BadLines,
        default=BadLines.stop,
        metavar="stop|set_aside",
        help="end at a line that is no example, or put it into OUT.rejected.jsonl (default: stop)",
    )
    arguments = parser.parse_args()
    return run_command(lambda: run(arguments))


def run(arguments: argparse.Namespace) -> None:
    from megatron_r1.data.curation.pipeline import curate

    config = CurationConfig(
        bad_lines=arguments.bad_lines,
        difficulty=DifficultyConfig(
            rollouts=arguments.rollouts,
            min_pass_rate=arguments.min_pass_rate,
            max_pass_rate=arguments.max_pass_rate,
            min_samples=arguments.min_samples,
        ),
        decontamination=DecontaminationConfig(
            files=arguments.against,
            ngram_words=arguments.ngram,
            signs=arguments.signs,
            max_items=arguments.max_items,
        ),
        near=NearDuplicateConfig(threshold=arguments.near),
    )
    report = curate(arguments.inputs, arguments.output, config)
    print(f"{report.describe()}\n\n{arguments.output}: {report.kept} examples")


if __name__ == "__main__":
    sys.exit(main())
