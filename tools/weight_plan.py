"""Show how weights would get from a trainer to its engines, without either.

    python tools/weight_plan.py --world-size 512 --engine-ranks 16 --engine-expert 16 --fp8 \\
        model=deepseek_v3 parallel.pipeline=16 parallel.expert=32

What follows the options are settings of the trainer, as for megatron_r1.train. A layout that cannot
be ends with exit code 2 and says why.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # a clone that is not installed

from megatron_r1.command import run_command  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--world-size", type=int, default=1, help="ranks of the trainer")
    parser.add_argument("--senders", type=int, default=1, help="per pipeline stage; 0: every rank")
    parser.add_argument("--bucket-mib", type=int, default=512)
    parser.add_argument("--engines", type=int, default=1)
    parser.add_argument("--engine-ranks", type=int, default=1, help="of each (SGLang's --tp-size)")
    parser.add_argument("--engine-expert", type=int, default=1, help="SGLang's --ep-size")
    parser.add_argument(
        "--attention-replicas", type=int, default=1, help="--dp-size with --enable-dp-attention"
    )
    parser.add_argument("--dense-replicated", action="store_true", help="--moe-dense-tp-size 1")
    parser.add_argument("--parts", action="store_true", help="each rank receives what it keeps")
    parser.add_argument("--fp8", action="store_true", help="engines hold FP8 blocks")
    parser.add_argument("overrides", nargs="*", metavar="SETTING")
    arguments = parser.parse_args()

    def show() -> None:
        from megatron_r1.config.load import load_config
        from megatron_r1.weights.engine_layout import EngineLayout, Receive
        from megatron_r1.weights.plan import plan_weights
        from megatron_r1.weights.plan_report import describe
        from megatron_r1.weights.trainer_layout import TrainerLayout

        config = load_config(arguments.overrides)
        config.validate_layout(arguments.world_size)
        engine = EngineLayout(
            tensor=arguments.engine_ranks,
            expert=arguments.engine_expert,
            attention_replicas=arguments.attention_replicas,
            dense_replicated=arguments.dense_replicated,
            num_engines=arguments.engines,
            receive=Receive.part if arguments.parts else Receive.whole,
            fp8=arguments.fp8,
        )
        started_s = time.perf_counter()
        plan = plan_weights(
            TrainerLayout(config.model, config.parallel, arguments.world_size),
            engine,
            bucket_bytes=arguments.bucket_mib * 2**20,
            senders_per_stage=arguments.senders or None,
        )
        planned_s = time.perf_counter() - started_s
        print(f"{describe(plan)}\nplanned in {planned_s:.1f} s")

    return run_command(show)


if __name__ == "__main__":
    sys.exit(main())
