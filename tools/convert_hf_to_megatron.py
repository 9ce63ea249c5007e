"""Convert a Hugging Face model to a checkpoint that training starts from, in any layout.

    python tools/convert_hf_to_megatron.py Qwen2.5-7B/ qwen2.5_7b/
    python -m megatron_r1.train ... model=qwen2.5_7b model.init_from=qwen2.5_7b/

Needs little memory, whatever the model's size. Interrupted, the same command goes on. Training also
reads a Hugging Face model directly: model.init_from=Qwen2.5-7B/.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from megatron_r1.command import gigabytes, run_command  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, metavar="SRC", help="directory with config.json")
    parser.add_argument("destination", type=Path, metavar="DST", help="must not exist")
    parser.add_argument(
        "--dtype",
        choices=["keep", "bfloat16", "float16", "float32"],
        default="keep",
        help="of the weights; FP8 is kept as bfloat16 (default: keep)",
    )
    parser.add_argument(
        "--file-gb", type=gigabytes, default=4.0, help="size of a data file (default: 4)"
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="compare config.json with the index, which is all it needs; write nothing",
    )
    parser.add_argument(
        "--check", action="store_true", help="compare logits of both sides afterwards"
    )
    arguments = parser.parse_args()
    return run_command(lambda: dry_run(arguments) if arguments.dry_run else convert(arguments))


def convert(arguments: argparse.Namespace) -> None:
    from megatron_r1.checkpoint.conversion import WeightDtype
    from megatron_r1.checkpoint.hf_import import import_hf

    found: list[str] = []

    def check(draft: Path) -> None:
        from megatron_r1.checkpoint.logit_check import compare_logits

        gap = compare_logits(arguments.source, draft)
        found.append(gap.describe() if gap else "not checked: the model does not fit into memory")

    report = import_hf(
        arguments.source,
        arguments.destination,
        dtype=WeightDtype(arguments.dtype),
        file_bytes=int(arguments.file_gb * 1e9),
        check=check if arguments.check else None,
    )
    print(f"{arguments.destination}: {report.describe()}")
    for line in found:
        print(line)


def dry_run(arguments: argparse.Namespace) -> None:
    from megatron_r1.checkpoint.hf_coverage import (
        absent_mtp_note,
        describe_tensors,
        index_coverage,
        read_hf_head,
    )
    from megatron_r1.errors import CheckpointError
    from megatron_r1.models.size import count_parameters
    from megatron_r1.weights.names import name_table

    started_s = time.monotonic()
    config, found = index_coverage(arguments.source)
    head = read_hf_head(arguments.source)
    table = name_table(config, head)
    print(describe_tensors(table))
    billions = count_parameters(config, head).total / 1e9
    seconds = time.monotonic() - started_s
    print(f"{found.num_expected:,} weights of {billions:,.1f} B parameters, in {seconds:.1f} s")
    if not found.complete:
        raise CheckpointError(
            f"{arguments.source}: not every tensor is covered. {found.describe()}"
        )
    print("every tensor is covered")
    note = absent_mtp_note(arguments.source, config)
    if note:
        print(note)


if __name__ == "__main__":
    sys.exit(main())
