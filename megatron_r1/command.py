"""How our command lines end: a user's mistake is one message and exit code 2."""

from __future__ import annotations

import errno
import math
import os
import sys
from collections.abc import Callable

from megatron_r1.errors import (
    EXIT_DONE,
    EXIT_INTERRUPTED,
    EXIT_RUN_AGAIN,
    EXIT_USER_ERROR,
    ConfigError,
    StoppedEarly,
    UserError,
)


def run_command(action: Callable[[], None], *, speaks: bool = True) -> int:
    """Run `action`. Returns the exit code.

    Args:
        speaks: False on the ranks of a job that repeat what the main rank says.
    """
    try:
        check_environment()
        action()
    except UserError as error:
        if not speaks and not error.one_rank:
            return EXIT_USER_ERROR
        return _fail(f"{type(error).__name__}: {error}", EXIT_USER_ERROR)
    except StoppedEarly as reason:
        if speaks:
            print(f"Stopped by {reason}. Start the same command again and it goes on", flush=True)
        return EXIT_RUN_AGAIN
    except KeyboardInterrupt:
        return _fail("Stopped: start the same command again and it goes on", EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" at {error.filename}" if error.filename else ""
        message = f"DiskFull: {error.strerror}{where}. Make room, start the same command again"
        return _fail(f"{message}, and it goes on", EXIT_USER_ERROR)
    return EXIT_DONE


def check_environment() -> None:
    """What a variable of the environment says is understood and can be had; nothing else reads it
    before the first kernel runs.

    Raises:
        ConfigError: R1_KERNELS names no backend, or one that does not run on this device.
    """
    if "R1_KERNELS" in os.environ:
        import torch

        from r1_kernels.backend import problem_of_choice

        # Where the program will compute (`platform/host.py`), before Megatron-Core is imported.
        if problem := problem_of_choice("cuda" if torch.cuda.is_available() else "cpu"):
            raise ConfigError(problem)


def gigabytes(text: str) -> float:
    """A size on the command line, for argparse; raises ValueError where it is none."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(text)
    return value


def _fail(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return exit_code
