"""How a program is shut in: bubblewrap first, then namespaces by our own launcher.

Both give a program its own user, mount, process, network, IPC and host-name namespaces, a read-only
view of the system's libraries and compilers, one private directory in memory, an empty environment,
resource limits and a filter of system calls. What the invoking user may read elsewhere (home
directories, data, checkpoints) is not there at all.

Run by root, there is no user namespace: the program gets a user id of its own instead, because the
kernel does not limit root's processes, under whatever name.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from megatron_r1.config.reward import Isolation
from megatron_r1.rewards.sandbox.limits import Limits
from megatron_r1.rewards.sandbox.seccomp import filter_program

BOX = "/box"
"""The program's working directory, and the only one that it can write to."""
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/etc/alternatives")
_SYSTEM_FILES = ("/etc/ld.so.cache",)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
_ENV = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "HOME": BOX,
    "TMPDIR": BOX,
    "LANG": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
}
_LAUNCHER = Path(__file__).with_name("launcher.py")
_FIRST_UID, _NUM_UIDS = 61_000, 4_000
_uids = itertools.count(os.getpid())


@dataclass(frozen=True)
class Command:
    """What to start; its file descriptors belong to the caller, who closes them."""

    argv: list[str]
    pass_fds: tuple[int, ...]
    env: dict[str, str]
    status_fd: int | None
    """Where ``{"exit-code": N}`` can be read once the program has ended; None: its own code."""


def build_command(
    isolation: Isolation,
    argv: Sequence[str],
    files: Mapping[str, bytes],
    limits: Limits,
    work_dir: str,
) -> Command:
    """The command that runs `argv` with `files` in its private directory.

    Args:
        isolation: not ``auto``.
        work_dir: for ``none`` alone: an empty directory, where the files are written.
    """
    if isolation is Isolation.bubblewrap:
        return _bubblewrap(argv, files, limits)
    if isolation is Isolation.namespaces:
        return _namespaces(argv, files, limits)
    for name, content in files.items():
        _write(Path(work_dir) / name, content)
    local = [arg.replace(BOX + "/", work_dir + "/") for arg in argv]
    env = {name: value.replace(BOX, work_dir) for name, value in _ENV.items()}
    return Command(["prlimit", *_prlimit_flags(limits), "--", *local], (), env, None)


def python_program() -> tuple[str, ...]:
    """The interpreter that sandboxed Python runs on: this one without its environment's packages.

    ``-I`` ignores the environment, ``-S`` leaves site packages out, ``-B`` writes no caches.
    """
    return (os.path.realpath(sys.executable), "-I", "-S", "-B")


def _bubblewrap(argv: Sequence[str], files: Mapping[str, bytes], limits: Limits) -> Command:
    status_read, status_write = os.pipe()
    fds = [status_write]
    args = ["bwrap", "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts"]
    args += ["--unshare-cgroup-try", "--die-with-parent", "--new-session"]
    args += ["--json-status-fd", str(status_write), "--hostname", "sandbox"]
    prefix = ["prlimit", *_prlimit_flags(limits), "--"]
    if _is_real_root():
        uid = str(_next_uid())
        args += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
        prefix += ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--"]
    else:
        args += ["--unshare-user", "--uid", "1000", "--gid", "1000"]
    for link, target in _symlinks().items():
        args += ["--symlink", target, link]
    for path in _read_only():
        # bubblewrap would make the parents as private as they are outside, /root for one.
        for parent in reversed(Path(path).parents[:-1]):
            args += ["--perms", "0755", "--dir", str(parent)]
        args += ["--ro-bind", path, path]
    args += ["--proc", "/proc", "--dev", "/dev", "--remount-ro", "/dev"]
    args += ["--perms", "0777", "--size", str(limits.disk_bytes), "--tmpfs", BOX]
    for name, content in files.items():
        fds.append(_memory_file(content))
        args += ["--perms", "0555", "--file", str(fds[-1]), f"{BOX}/{name}"]
    args += ["--remount-ro", "/", "--chdir", BOX, "--clearenv"]
    for name, value in _ENV.items():
        args += ["--setenv", name, value]
    program = filter_program()
    if program is not None:
        fds.append(_memory_file(program))
        args += ["--seccomp", str(fds[-1])]
    return Command([*args, "--", *prefix, *argv], tuple(fds), {"PATH": _ENV["PATH"]}, status_read)


def _namespaces(argv: Sequence[str], files: Mapping[str, bytes], limits: Limits) -> Command:
    status_read, status_write = os.pipe()
    program = filter_program()
    spec = {
        "argv": [shutil.which(argv[0], path=_ENV["PATH"]) or argv[0], *argv[1:]],
        "env": _ENV,
        "box": BOX,
        "files": {name: content.hex() for name, content in files.items()},
        "read_only": _read_only(),
        "symlinks": _symlinks(),
        "devices": [path for path in _DEVICES if os.path.exists(path)],
        "disk_bytes": limits.disk_bytes,
        "rlimits": _rlimits(limits),
        "drop_to_uid": _next_uid() if _is_real_root() else None,
        "seccomp": program.hex() if program else "",
    }
    spec_fd = _memory_file(json.dumps(spec).encode())
    command = [sys.executable, "-I", "-S", str(_LAUNCHER), str(spec_fd), str(status_write)]
    return Command(command, (status_write, spec_fd), {}, status_read)


def _rlimits(limits: Limits) -> dict[str, tuple[int, int]]:
    cpu_s = math.ceil(limits.cpu_s)
    return {
        "RLIMIT_CPU": (cpu_s, cpu_s + 1),
        "RLIMIT_AS": (limits.memory_bytes,) * 2,
        "RLIMIT_NPROC": (limits.max_processes,) * 2,
        "RLIMIT_FSIZE": (limits.file_bytes,) * 2,
        "RLIMIT_NOFILE": (limits.max_open_files,) * 2,
        "RLIMIT_CORE": (0, 0),
        "RLIMIT_MEMLOCK": (0, 0),
        "RLIMIT_MSGQUEUE": (0, 0),
    }


def _prlimit_flags(limits: Limits) -> list[str]:
    return [
        f"--{name.removeprefix('RLIMIT_').lower()}={soft}:{hard}"
        for name, (soft, hard) in _rlimits(limits).items()
    ]


@cache
def _symlinks() -> dict[str, str]:
    """/bin -> usr/bin and the like, where the system is merged."""
    links = {path: os.readlink(path) for path in _SYSTEM if os.path.islink(path)}
    return links | {"/tmp": BOX.lstrip("/")}


@cache
def _read_only() -> list[str]:
    paths = [path for path in _SYSTEM if os.path.isdir(path) and not os.path.islink(path)]
    paths += [path for path in _SYSTEM_FILES if os.path.isfile(path)]
    prefix = os.path.dirname(os.path.dirname(python_program()[0]))
    if not any(Path(prefix).is_relative_to(path) for path in paths):
        paths.append(prefix)
    return paths


@cache
def _is_real_root() -> bool:
    """Whether this process is root, and not just called so in a user namespace."""
    if os.geteuid() != 0:
        return False
    return Path("/proc/self/uid_map").read_text().split() == ["0", "0", "4294967295"]


def _next_uid() -> int:
    """A user id for one run, so that the kernel counts its processes apart."""
    return _FIRST_UID + next(_uids) % _NUM_UIDS


def _memory_file(content: bytes) -> int:
    fd = os.memfd_create("sandbox")
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view) :]
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    path.chmod(0o755)
