"""`python -m megatron_r1.train [overrides]`: one run, on this rank of the job."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from megatron_r1 import signals
from megatron_r1.config.load import CONF_DIR, load_config, to_yaml, world_size_from_environment
from megatron_r1.config.overrides import usage
from megatron_r1.config.r1 import R1Stage2Config, R1Stage4Config
from megatron_r1.config.run import RunConfig
from megatron_r1.config.sft import R1Stage1Config, R1Stage3Config, SftConfig
from megatron_r1.config.stage import (
    DistillConfig,
    DpoStageConfig,
    R1ZeroConfig,
    RmHelpfulConfig,
    RmSafetyConfig,
    TinyBaseConfig,
    TinyR1ZeroConfig,
)
from megatron_r1.data.prompts import check_source
from megatron_r1.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_RUN_AGAIN,
    EXIT_USER_ERROR,
    StoppedEarly,
    UserError,
)
from megatron_r1.rewards.mix import rules_of
from megatron_r1.telemetry.restarts import check_progress


def main(arguments: Sequence[str] | None = None) -> int:
    """Compose, check, print the configuration, run its stage. Returns the exit code."""
    signals.listen()
    is_main = os.environ.get("RANK", "0") == "0"
    arguments = sys.argv[1:] if arguments is None else arguments
    if {"-h", "--help"} & set(arguments):
        print(usage(CONF_DIR))
        return EXIT_DONE
    try:
        config = load_config(arguments)
        config.validate(world_size_from_environment())
        rules_of(config.reward)  # refuses unknown rules
        check_source(config.data)
        allowed = config.cluster.restarts_without_progress
        check_progress(config.run.dir, os.environ, allowed=allowed)
        if is_main:
            print(to_yaml(config), flush=True)
        run(config)
    except UserError as error:
        if is_main or error.one_rank:
            _print_error(type(error).__name__, str(error))
        return EXIT_USER_ERROR
    except StoppedEarly as reason:
        if is_main:
            again = "What was made is saved: start the same command again and the run resumes"
            print(f"Stopped by {reason}. {again}", flush=True)
        return EXIT_RUN_AGAIN
    except KeyboardInterrupt:
        if is_main:
            _print_error("Stopped", "start the same command again and the run resumes")
        return EXIT_INTERRUPTED
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" at {error.filename}" if error.filename else ""
        _print_error(
            "DiskFull",
            f"{error.strerror}{where}. What was saved before is whole: make room and start the run "
            "again, and it resumes",
        )
        return EXIT_USER_ERROR
    return EXIT_DONE


def _print_error(kind: str, message: str) -> None:
    print(f"{kind}: {message}", file=sys.stderr, flush=True)


def run(config: RunConfig) -> None:
    """Run the configured stage in the run directory."""
    from megatron_r1.stages.session import open_session  # Megatron-Core, seconds to import

    with open_session(config) as session:
        session.say(f"{session.layout.describe()} on {session.host.device}; {session.run_dir}")
        stage, init_from = config.stage, config.model.init_from
        source = Path(init_from) if init_from else None
        match stage:
            case TinyR1ZeroConfig():
                from megatron_r1.stages.tiny_r1_zero import run_tiny_r1_zero

                run_tiny_r1_zero(session, stage)
            case TinyBaseConfig():
                from megatron_r1.stages.tiny_base import run_tiny_base

                run_tiny_base(session, stage, session.run_dir)
            case R1Stage1Config():
                from megatron_r1.stages.r1_stage1 import run_r1_stage1

                run_r1_stage1(session, stage, session.run_dir, source)
            case R1Stage2Config():
                from megatron_r1.stages.r1_stage2 import run_r1_stage2

                run_r1_stage2(session, stage, session.run_dir, source)
            case R1Stage3Config():
                from megatron_r1.stages.r1_stage3 import run_r1_stage3

                run_r1_stage3(session, stage, session.run_dir, source)
            case R1Stage4Config():
                from megatron_r1.stages.r1_stage4 import run_r1_stage4

                run_r1_stage4(session, stage, session.run_dir, source)
            case SftConfig():
                from megatron_r1.stages.sft import run_sft

                run_sft(session, stage, session.run_dir, source)
            case R1ZeroConfig():
                from megatron_r1.stages.r1_zero import run_r1_zero

                run_r1_zero(session, stage, session.run_dir, source)
            case DpoStageConfig():
                from megatron_r1.stages.dpo import run_dpo

                run_dpo(session, stage, session.run_dir, source)
            case RmHelpfulConfig():
                from megatron_r1.stages.rm_helpful import run_rm_helpful

                run_rm_helpful(session, stage, session.run_dir, source)
            case RmSafetyConfig():
                from megatron_r1.stages.rm_safety import run_rm_safety

                run_rm_safety(session, stage, session.run_dir, source)
            case DistillConfig():
                from megatron_r1.stages.distill import run_distill

                run_distill(session, stage, session.run_dir, source)


if __name__ == "__main__":
    sys.exit(main())
