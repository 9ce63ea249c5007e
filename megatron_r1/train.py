"""`python -m megatron_r1.train [overrides]`: one run, on this rank of the job."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence

from megatron_r1 import signals
from megatron_r1.command import check_environment
from megatron_r1.config.load import CONF_DIR, load_config, to_yaml, world_size_from_environment
from megatron_r1.config.overrides import usage
from megatron_r1.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_RUN_AGAIN,
    EXIT_USER_ERROR,
    StoppedEarly,
    UserError,
)
from megatron_r1.stages.dispatch import check_run, run_stage
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
        check_environment()
        config = load_config(arguments)
        check_run(config, world_size_from_environment())
        allowed = config.cluster.restarts_without_progress
        check_progress(config.run.dir, os.environ, allowed=allowed)
        if is_main:
            print(to_yaml(config), flush=True)
        run_stage(config)
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


if __name__ == "__main__":
    sys.exit(main())
