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
        from r1_kernels.backend import Backend, from_environment  # imports torch

        try:
            backend = from_environment()
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if backend is Backend.triton:
            _check_triton()


def _check_triton() -> None:
    """Ask for Triton where the program will: without a GPU before Megatron-Core is imported."""
    import torch

    from megatron_r1.platform.host import prepare
    from r1_kernels.backend import Backend, takes_triton

    device = prepare().device if torch.cuda.is_available() else torch.device("cpu")
    try:
        takes_triton(Backend.triton, torch.empty(0, device=device))
    except ValueError as error:
        raise ConfigError(
            f"R1_KERNELS=triton on {device}: {error}. R1_KERNELS=auto takes Triton on a GPU where "
            "it is installed, and plain PyTorch elsewhere"
        ) from None


def gigabytes(text: str) -> float:
    """A size on the command line, for argparse; raises ValueError where it is none."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise ValueError(text)
    return value


def _fail(message: str, exit_code: int) -> int:
    print(message, file=sys.stderr, flush=True)
    return exit_code
