"""What a program may use, and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """For one run of one program, with all its processes."""

    cpu_s: float = 4.0
    """CPU time; every process by itself and all of them together."""
    wall_s: float = 8.0
    memory_bytes: int = 256 * MIB
    """Address space of each process, and resident memory of all of them together."""
    max_processes: int = 16
    """Processes and threads alive at once."""
    file_bytes: int = 16 * MIB
    """Size of one file."""
    disk_bytes: int = 32 * MIB
    """Size of the private directory, which lies in memory."""
    output_bytes: int = 1 * MIB
    """Standard output; as much again of standard error."""
    max_open_files: int = 64


class Status(Enum):
    """How a run ended."""

    exited = "exited"
    """By itself; the exit code says how."""
    signalled = "signalled"
    cpu_time = "cpu time"
    wall_time = "wall time"
    memory = "memory"
    output = "output"


@dataclass(frozen=True)
class Outcome:
    """One run of one program."""

    status: Status
    exit_code: int
    """0 to 255; minus the signal's number where a signal ended it, or one of ours did."""
    stdout: bytes
    stderr: bytes
    wall_s: float
    cpu_s: float
    """Of all its processes, as last seen: a run shorter than 0.05 s may show 0."""

    @property
    def ok(self) -> bool:
        return self.status is Status.exited and self.exit_code == 0

    @property
    def reason(self) -> str:
        """One line for people: ``exit code 1: ZeroDivisionError: division by zero``."""
        if self.status is Status.exited:
            last = self.stderr.decode(errors="replace").strip().rsplit("\n", 1)[-1][:120]
            return f"exit code {self.exit_code}" + (f": {last}" if last else "")
        if self.status is Status.signalled:
            return f"signal {-self.exit_code}"
        return f"over its limit of {self.status.value}"
