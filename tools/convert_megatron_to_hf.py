"""Convert a checkpoint to a Hugging Face model that transformers and SGLang load as it is.

    python tools/convert_megatron_to_hf.py runs/r1_zero hf/r1_zero

The checkpoint may have been saved in any layout. Needs little memory, whatever the model's size.
Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from megatron_r1.command import gigabytes, run_command  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "source", type=Path, metavar="SRC", help="a run (its latest checkpoint) or a checkpoint"
    )
    parser.add_argument("destination", type=Path, metavar="DST", help="must not exist")
    parser.add_argument(
        "--dtype",
        choices=["keep", "bfloat16", "float16", "float32", "fp8"],
        default="keep",
        help="of the weights; fp8 is DeepSeek's, with a scale per 128 x 128 (default: keep)",
    )
    parser.add_argument(
        "--shard-gb", type=gigabytes, default=5.0, help="size of a file (default: 5)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="compare the checkpoint with its model; write nothing",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare logits of both sides afterwards"
    )
    arguments = parser.parse_args()
    return run_command(lambda: dry_run(arguments) if arguments.dry_run else convert(arguments))


def convert(arguments: argparse.Namespace) -> None:
    from megatron_r1.checkpoint.conversion import WeightDtype
    from megatron_r1.checkpoint.hf_export import export_hf
    from megatron_r1.checkpoint.record import resolve_checkpoint

    found: list[str] = []

    def check(draft: Path) -> None:
        from megatron_r1.checkpoint.logit_check import compare_logits

        gap = compare_logits(draft, resolve_checkpoint(arguments.source))
        found.append(gap.describe() if gap else "not checked: the model does not fit into memory")

    report = export_hf(
        arguments.source,
        arguments.destination,
        dtype=WeightDtype(arguments.dtype),
        shard_bytes=int(arguments.shard_gb * 1e9),
        check=check if arguments.check else None,
    )
    print(f"{arguments.destination}: {report.describe()}")
    for line in found:
        print(line)


def dry_run(arguments: argparse.Namespace) -> None:
    from megatron_r1.checkpoint.hf_coverage import describe_tensors
    from megatron_r1.checkpoint.hf_export import PolicyWeights
    from megatron_r1.checkpoint.record import resolve_checkpoint

    weights = PolicyWeights(resolve_checkpoint(arguments.source))
    print(describe_tensors(weights.table))
    print(f"{weights.path} holds all of them")


if __name__ == "__main__":
    sys.exit(main())
