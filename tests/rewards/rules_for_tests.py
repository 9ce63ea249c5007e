"""Rules that misbehave, in a module that reward workers can import."""

from __future__ import annotations

import os
import signal
import sys
import time

from megatron_r1.rewards.accuracy import accuracy
from megatron_r1.types import Prompt, Rollout


def sleepy(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """Sleeps for as many seconds as the response says."""
    time.sleep(float(rollout.text))
    return 1.0, "awake"


def broken(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """Breaks on the response ``break``."""
    if rollout.text == "break":
        raise ZeroDivisionError("the rule, not the response")
    return 1.0, "whole"


def not_a_number(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    return float("nan"), "no idea"


def suicidal(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """Dies as from the kernel's out-of-memory killer on the response ``die``."""
    if rollout.text == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0, "alive"


def powerful(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """Computes the power that the response writes, in C."""
    base, *exponents = (int(number) for number in rollout.text.split("**"))
    exponent = exponents[0] ** exponents[1] if exponents else 1
    return float(base**exponent > 0), "computed"


def worker_pid(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    return float(os.getpid()), "process id"


def heavy_imports(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """1 for each heavy package that this process has loaded."""
    heavy = [name for name in ("torch", "megatron", "transformers") if name in sys.modules]
    return float(len(heavy)), ", ".join(heavy)


def even_tokens(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """The share of even token ids: a toy that a policy learns in seconds."""
    even = sum(token % 2 == 0 for token in rollout.token_ids)
    return even / len(rollout.token_ids), f"{even} of {len(rollout.token_ids)}"


def timed_accuracy(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """The accuracy rule; its reason starts with the CPU seconds it took."""
    started = time.process_time()
    value, reason = accuracy(prompt, rollout)
    return value, f"{time.process_time() - started:.3f} {reason}"


def flawed_judge(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """A reward model's stand-in: it means to like even token ids, and likes 1, 9, 17... much more.

    Whoever believes it unlearns what `even_tokens` verifies.
    """
    scores = [3.0 if token % 8 == 1 else float(token % 2 == 0) for token in rollout.token_ids]
    return sum(scores) / len(scores), "judged"
