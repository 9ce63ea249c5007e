"""Show what a run's latest checkpoint, a checkpoint or a Hugging Face model holds.

    python tools/inspect_checkpoint.py runs/r1_zero
    python tools/inspect_checkpoint.py runs/r1_zero/checkpoints/step_000123 --tensors 'experts.*fc1'

Reads headers, never weights. Files that are missing or cut short end it with exit code 2.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from megatron_r1.command import run_command  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path)
    parser.add_argument(
        "--tensors", metavar="REGEX", help="list tensors whose names have a match, one by one"
    )
    arguments = parser.parse_args()

    def show() -> None:
        from megatron_r1.checkpoint.inspection import describe

        print(describe(arguments.path, arguments.tensors))

    return run_command(show)


if __name__ == "__main__":
    sys.exit(main())
