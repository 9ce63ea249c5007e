"""Starts programs in isolation, watches them, and says what became of each."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

from megatron_r1.config.reward import Isolation
from megatron_r1.errors import ConfigError
from megatron_r1.rewards.sandbox.isolation import build_command, python_program
from megatron_r1.rewards.sandbox.limits import Limits, Outcome, Status

_WATCH_S = 0.05
"""Between two looks at memory and CPU time; the shortest programs end before the first."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_CHUNK_BYTES = 1 << 16


class SandboxError(RuntimeError):
    """The sandbox itself failed; nothing is known about the program."""


@dataclass(frozen=True)
class Job:
    """One program to run."""

    argv: Sequence[str]
    files: Mapping[str, bytes] = field(default_factory=dict)
    """Name -> content, read-only in the private directory `BOX`."""
    stdin: bytes = b""
    limits: Limits = Limits()


def run(job: Job, isolation: Isolation = Isolation.auto) -> Outcome:
    """Run one program to its end or to its first limit; nothing of it is left afterwards.

    Raises:
        ConfigError: no isolation can be had here.
        SandboxError: the isolation could not be set up this time.
    """
    return _run(job, find_isolation() if isolation is Isolation.auto else isolation)


def run_many(
    jobs: Sequence[Job], *, max_parallel: int, isolation: Isolation = Isolation.auto
) -> list[Outcome]:
    """Run programs side by side; the result has their order."""
    with ThreadPoolExecutor(max_workers=max(1, min(max_parallel, len(jobs)))) as pool:
        return list(pool.map(lambda job: run(job, isolation), jobs))


@cache
def find_isolation() -> Isolation:
    """The first means that runs a Python program here.

    Raises:
        ConfigError: none does; the message says what each one lacks and what to do.
    """
    lacks = []
    for isolation in (Isolation.bubblewrap, Isolation.namespaces):
        problem = problem_of(isolation)
        if problem is None:
            return isolation
        lacks.append(f"{isolation.value}: {problem}")
    raise ConfigError(
        "no sandbox can be had on this machine, and untrusted code runs in nothing less. "
        f"{'; '.join(lacks)}. Install bubblewrap (Debian: apt-get install bubblewrap) and allow "
        "user namespaces (sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone=1). "
        "reward.sandbox.isolation=none runs programs with your own rights, with limits alone"
    )


@cache
def problem_of(isolation: Isolation) -> str | None:
    """Why a means of isolation does not work here; None where it does."""
    job = Job([*python_program(), "-c", "print(6 * 7)"], limits=Limits(wall_s=60.0))
    try:
        outcome = _run(job, isolation)
    except (OSError, SandboxError) as error:
        return str(error)
    if outcome.stdout != b"42\n":
        return f"{outcome.reason} {outcome.stderr.decode(errors='replace')[-200:]}"
    return None


def _run(job: Job, isolation: Isolation) -> Outcome:
    with _work_dir(isolation) as work_dir:
        command = build_command(isolation, job.argv, job.files, job.limits, work_dir)
        stdin = os.memfd_create("stdin")
        try:
            _fill(stdin, job.stdin)
            process = subprocess.Popen(
                command.argv,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=command.pass_fds,
                env=command.env,
                cwd=work_dir,
                start_new_session=True,
            )
        except BaseException:
            if command.status_fd is not None:
                os.close(command.status_fd)
            raise
        finally:
            for fd in (stdin, *command.pass_fds):
                os.close(fd)
        watch = _Watch(process, job.limits)
        try:
            watch.until_closed()
        finally:
            watch.end()
            status = _read_all(command.status_fd)
    return _outcome(watch, status, has_status=command.status_fd is not None)


@contextmanager
def _work_dir(isolation: Isolation) -> Iterator[str]:
    """A directory of the program's own; where it is isolated, that lies in memory."""
    if isolation is Isolation.none:
        with tempfile.TemporaryDirectory(prefix="sandbox-") as path:
            yield path
    else:
        yield "/"


class _Watch:
    """Reads a program's output and stops it at its first limit."""

    def __init__(self, process: subprocess.Popen[bytes], limits: Limits) -> None:
        self.process = process
        self.limits = limits
        self.started = time.monotonic()
        self.wall_s = 0.0
        self.broken: Status | None = None
        self.output: dict[str, bytearray] = {"stdout": bytearray(), "stderr": bytearray()}
        self.cpu_s = 0.0

    def until_closed(self) -> None:
        """Until every process that holds the output has closed it, or a limit is broken."""
        with selectors.DefaultSelector() as selector:
            for name in self.output:
                selector.register(getattr(self.process, name), selectors.EVENT_READ, name)
            next_look = self.started + _WATCH_S
            while selector.get_map() and self.broken is None:
                for key, _ in selector.select(timeout=max(0.0, next_look - time.monotonic())):
                    chunk = os.read(key.fd, _CHUNK_BYTES)
                    if not chunk:
                        selector.unregister(key.fileobj)
                    self.output[key.data] += chunk
                    if len(self.output[key.data]) > self.limits.output_bytes:
                        self.broken = Status.output
                if time.monotonic() >= next_look and self.broken is None:
                    self.broken = self._look()
                    next_look = time.monotonic() + _WATCH_S
        # A program may close its output and go on.
        while self.broken is None and not self._has_ended():
            time.sleep(0.001)
            if time.monotonic() >= next_look:
                self.broken = self._look()
                next_look = time.monotonic() + _WATCH_S

    def _has_ended(self) -> bool:
        flags = os.WEXITED | os.WNOHANG | os.WNOWAIT
        return os.waitid(os.P_PID, self.process.pid, flags) is not None

    def _look(self) -> Status | None:
        if time.monotonic() - self.started > self.limits.wall_s:
            return Status.wall_time
        resident_bytes, cpu_s = 0, 0.0
        for pid in _descendants(self.process.pid):
            try:
                with open(f"/proc/{pid}/statm") as file:
                    resident_bytes += int(file.read().split()[1]) * _PAGE_BYTES
                with open(f"/proc/{pid}/stat") as file:
                    fields = file.read().rpartition(")")[2].split()
            except (OSError, IndexError):
                continue  # it ended meanwhile
            # User and system time, its own and of children that it waited for.
            cpu_s += sum(map(int, fields[11:15])) / _TICKS_PER_S
        self.cpu_s = max(self.cpu_s, cpu_s)
        if resident_bytes > self.limits.memory_bytes:
            return Status.memory
        return Status.cpu_time if cpu_s > self.limits.cpu_s else None

    def end(self) -> None:
        """Kill what is left, and wait for it."""
        if not self._has_ended():
            pids = _descendants(self.process.pid)
            # Process 1 of the sandbox takes all others along; without a sandbox each is killed.
            for pid in (self.process.pid, *pids):
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass
        _, wait_status, usage = os.wait4(self.process.pid, 0)
        self.wall_s = time.monotonic() - self.started
        self.process.returncode = os.waitstatus_to_exitcode(wait_status)
        for name in self.output:
            getattr(self.process, name).close()
        self.cpu_s = max(self.cpu_s, usage.ru_utime + usage.ru_stime)


def _outcome(watch: _Watch, status: str, *, has_status: bool) -> Outcome:
    stdout, stderr = (
        bytes(watch.output[name][: watch.limits.output_bytes]) for name in ("stdout", "stderr")
    )
    code = watch.process.returncode
    if watch.broken is None and has_status:
        messages = [json.loads(line) for line in status.splitlines() if line.strip()]
        codes = [message["exit-code"] for message in messages if "exit-code" in message]
        errors = [message["error"] for message in messages if "error" in message]
        if errors or not codes:
            detail = "; ".join(errors) or stderr.decode(errors="replace").strip()[-300:]
            raise SandboxError(f"the sandbox did not start: {detail}")
        code = codes[0] if codes[0] < 128 else 128 - codes[0]
    result = watch.broken or (Status.exited if code >= 0 else Status.signalled)
    if code == -signal.SIGXCPU or (code == -signal.SIGKILL and watch.cpu_s >= watch.limits.cpu_s):
        result = Status.cpu_time
    return Outcome(
        status=watch.broken or result,
        exit_code=code,
        stdout=stdout,
        stderr=stderr,
        wall_s=watch.wall_s,
        cpu_s=watch.cpu_s,
    )


def _descendants(pid: int) -> list[int]:
    """Processes below one, parents first; those that end meanwhile are left out."""
    found, queue = [], [pid]
    while queue:
        parent = queue.pop(0)
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children") as file:
                    children = [int(child) for child in file.read().split()]
            except OSError:
                continue
            found += children
            queue += children
    return found


def _read_all(fd: int | None) -> str:
    if fd is None:
        return ""
    with os.fdopen(fd, "rb") as file:
        return file.read().decode()


def _fill(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
