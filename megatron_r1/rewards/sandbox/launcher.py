"""Runs one program in namespaces of its own, where bubblewrap is not installed.

A script of the standard library alone: ``python -I -S launcher.py SPEC_FD STATUS_FD``. It reads a
JSON specification (`isolation.py` writes it), and reports ``{"exit-code": N}`` as bubblewrap does,
or ``{"error": "..."}``. Processes: this one waits; its child is process 1 of the new namespaces,
builds the file system, and starts the program; when process 1 ends, the kernel kills the rest.
"""

import ctypes
import json
import os
import resource
import signal
import sys

_LIBC = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWIPC = 0x00020000, 0x04000000, 0x08000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
_MS_RDONLY, _MS_NOSUID, _MS_NODEV = 1, 2, 4
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 32, 4096, 16384, 1 << 18
_MNT_DETACH = 2
_KEPT_FLAGS = 1 | 2 | 4 | 8 | 1024 | 2048 | 4096
"""Flags of a mount, as statvfs reports them, that a user namespace may not drop."""
_SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 1, 38, 22
_PR_SET_DUMPABLE = 4
_PR_CAPBSET_DROP, _LAST_CAPABILITY = 24, 40


def main() -> None:
    spec_fd, status_fd = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(spec_fd) as file:
        spec = json.load(file)
    os.set_inheritable(status_fd, False)
    try:
        _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        _unshare(spec)
        init = os.fork()
        if init == 0:
            _run_as_init(spec, status_fd)
        _, status = os.waitpid(init, 0)
        os._exit(0 if os.WIFEXITED(status) else 1)
    except OSError as error:
        _report(status_fd, {"error": str(error)})
        os._exit(1)


def _unshare(spec: dict) -> None:
    if spec["drop_to_uid"] is None:
        uid, gid = os.geteuid(), os.getegid()
        _check(_LIBC.unshare(_NEWUSER), "unshare a user namespace")
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"1000 {uid} 1")
        _write("/proc/self/gid_map", f"1000 {gid} 1")
    others = _NEWNS | _NEWPID | _NEWNET | _NEWIPC | _NEWUTS
    _check(_LIBC.unshare(others), "unshare namespaces")


def _run_as_init(spec: dict, status_fd: int) -> None:
    """Process 1: never returns."""
    try:
        _check(_LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
        # The kernel keeps signals without a handler from process 1, and Python handles this one.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        _build_root(spec)
        # The program may have the same user id: it must not write to this process's memory.
        _check(_LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0), "prctl")
        program = os.fork()
        if program == 0:
            _become_program(spec, status_fd)
        # Process 1 holds no end of the program's pipes.
        for fd in (0, 1, 2):
            os.close(fd)
        while True:
            pid, status = os.wait()
            if pid == program:
                break
        code = os.waitstatus_to_exitcode(status)
        _report(status_fd, {"exit-code": code if code >= 0 else 128 - code})
    except OSError as error:
        _report(status_fd, {"error": str(error)})
    os._exit(0)


def _build_root(spec: dict) -> None:
    """A new root: system directories read-only, one writable directory of limited size."""
    _mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    _mount("tmpfs", "/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/old")
    os.mkdir("/tmp/new")
    _pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    _mount("tmpfs", "/new", "tmpfs", _MS_NOSUID | _MS_NODEV, "size=1m,mode=755")
    for link, target in spec["symlinks"].items():
        os.symlink(target, "/new" + link)
    for path in [*spec["read_only"], *spec["devices"]]:
        _bind("/old" + path, "/new" + path, read_only=path in spec["read_only"])
    os.mkdir("/new/proc")
    try:
        _mount("proc", "/new/proc", "proc", _MS_NOSUID | _MS_NODEV)
    except PermissionError:
        pass  # a container hides parts of its own /proc; most programs need none
    box = "/new" + spec["box"]
    os.makedirs(box)
    _mount("tmpfs", box, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={spec['disk_bytes']},mode=777")
    for name, content in spec["files"].items():
        with open(f"{box}/{name}", "wb") as file:
            file.write(bytes.fromhex(content))
        os.chmod(f"{box}/{name}", 0o555)
    _mount("none", "/new", None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir("/new")
    _pivot_root(".", ".")
    _check(_LIBC.umount2(b".", _MNT_DETACH), "unmount the old root")
    os.chdir(spec["box"])


def _bind(source: str, target: str, *, read_only: bool) -> None:
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(target), exist_ok=True)
        open(target, "w").close()
    _mount(source, target, None, _MS_BIND | _MS_REC)
    if read_only:
        kept = os.statvfs(source).f_flag & _KEPT_FLAGS
        flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV | kept
        _mount("none", target, None, flags)


def _become_program(spec: dict, status_fd: int) -> None:
    """The program's own process: never returns."""
    try:
        os.setsid()
        for name, value in spec["rlimits"].items():
            resource.setrlimit(getattr(resource, name), tuple(value))
        for capability in range(_LAST_CAPABILITY + 1):
            _LIBC.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        uid = spec["drop_to_uid"]
        if uid is not None:
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
        _check(_LIBC.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "set no_new_privs")
        if spec["seccomp"]:
            _install_filter(bytes.fromhex(spec["seccomp"]))
        os.execve(spec["argv"][0], spec["argv"], spec["env"])
    except OSError as error:
        _report(status_fd, {"error": str(error)})
    os._exit(127)


def _install_filter(program: bytes) -> None:
    class Filter(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("program", ctypes.c_char_p)]

    argument = Filter(len(program) // 8, program)
    _check(_LIBC.prctl(_PR_SET_SECCOMP, 2, ctypes.byref(argument), 0, 0), "install the filter")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    result = _LIBC.mount(
        source.encode(),
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        data.encode() if data else None,
    )
    _check(result, f"mount {target}")


def _pivot_root(new: str, old: str) -> None:
    number = _SYS_PIVOT_ROOT[os.uname().machine]
    _check(_LIBC.syscall(number, new.encode(), old.encode()), "pivot_root")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _report(status_fd: int, message: dict) -> None:
    os.write(status_fd, json.dumps(message).encode() + b"\n")


main()
