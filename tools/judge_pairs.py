"""Judge two responses to each question and write the clear preferences, for stage=dpo.

    python tools/judge_pairs.py candidates.jsonl pairs.jsonl judge.base_url=http://HOST:30000/v1
    python tools/judge_pairs.py candidates.jsonl pairs.jsonl judge=deepseek judge.cache_path=c.jsonl

One JSON object a line in: id, prompt, first, second. Four judgements each with random sides, as in
DeepSeek-R1; out come those that differ by more than 1, of balanced lengths. With a judge.cache_path
a second start asks only for what is missing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from megatron_r1.command import run_command  # noqa: E402
from megatron_r1.config.load import load_config  # noqa: E402
from megatron_r1.data.json_lines import text_of  # noqa: E402
from megatron_r1.data.preferences import write_preferences  # noqa: E402
from megatron_r1.data.records import parse_records  # noqa: E402
from megatron_r1.rewards.judge import Judge  # noqa: E402
from megatron_r1.rewards.pairs import Candidates, build_pairs  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("candidates", type=Path)
    parser.add_argument("pairs", type=Path)
    parser.add_argument("overrides", nargs="*", help="of conf/judge, and run.seed")
    arguments = parser.parse_args()

    def judge_all() -> None:
        config = load_config(arguments.overrides)
        candidates = parse_records(
            arguments.candidates,
            to_candidates,
            what="candidate",
            way_out="Name a JSONL file with id, prompt, first and second",
        )
        judge = Judge(config.judge)
        result = build_pairs(candidates, judge, seed=config.run.seed)
        write_preferences(arguments.pairs, result.pairs)
        dropped = ", ".join(f"{count} {reason}" for reason, count in result.dropped.items())
        print(f"{len(result.pairs)} pairs of {len(candidates)} in {arguments.pairs}; {dropped}")
        for name, value in judge.metrics.items():
            print(f"  {name} {value:g}")

    return run_command(judge_all)


def to_candidates(record: dict[str, Any], number: int) -> Candidates:
    """One line; raises ValueError with what is wrong."""
    return Candidates(*(text_of(record, key) for key in ("id", "prompt", "first", "second")))


if __name__ == "__main__":
    sys.exit(main())
