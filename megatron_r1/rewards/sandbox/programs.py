"""Python and C++ as sandbox jobs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_r1.config.reward import Isolation
from megatron_r1.rewards.sandbox.isolation import BOX, python_program
from megatron_r1.rewards.sandbox.limits import MIB, Limits
from megatron_r1.rewards.sandbox.run import Job, run

COMPILE_LIMITS = Limits(
    cpu_s=20.0,
    wall_s=40.0,
    memory_bytes=1024 * MIB,
    file_bytes=64 * MIB,
    disk_bytes=128 * MIB,
    output_bytes=32 * MIB,
)
_COMPILE = f"g++ -std=c++17 -O2 -o {BOX}/main {BOX}/main.cpp && cat {BOX}/main"
"""The binary leaves through standard output: no directory outside is ever writable."""


@dataclass(frozen=True)
class Compiled:
    """A binary, or why there is none."""

    binary: bytes | None
    reason: str = ""


def python_job(
    source: bytes, stdin: bytes, limits: Limits, extra_files: dict[str, bytes] | None = None
) -> Job:
    """Run Python source with the standard library and nothing else."""
    files = {"main.py": source, **(extra_files or {})}
    return Job([*python_program(), f"{BOX}/main.py"], files, stdin, limits)


def compile_cpp(source: bytes, isolation: Isolation, limits: Limits = COMPILE_LIMITS) -> Compiled:
    """Compile C++17 with optimisation, inside the sandbox: a compiler can be attacked too.

    Raises:
        SandboxError: there is no ``g++`` on this machine.
    """
    job = Job(["/bin/sh", "-c", _COMPILE], {"main.cpp": source}, b"", limits)
    outcome = run(job, isolation)
    if outcome.ok and outcome.stdout.startswith(b"\x7fELF"):
        return Compiled(outcome.stdout)
    first = outcome.stderr.decode(errors="replace").strip().split("\n", 1)[0][:160]
    return Compiled(None, f"{outcome.reason.split(':')[0]}: {first}" if first else outcome.reason)


def binary_jobs(binary: bytes, inputs: Sequence[bytes], limits: Limits) -> list[Job]:
    """One job for each input of a compiled program."""
    job = Job([f"{BOX}/main"], {"main": binary}, b"", limits)
    return [dataclasses.replace(job, stdin=stdin) for stdin in inputs]
