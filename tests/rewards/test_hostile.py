"""Programs that attack: each ends within its limits, none gets out, and nothing of it is left.

A program in `hostile/` starts with ``expect:``, the ways in which it may end. It prints ESCAPED
where it reached something that it must not reach. The suite runs under every means of isolation
that works here, and is skipped, by name, for those that do not.
"""

from __future__ import annotations

import ctypes
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_r1.config.reward import Isolation
from megatron_r1.rewards.sandbox.isolation import python_program
from megatron_r1.rewards.sandbox.limits import MIB, Limits, Status
from megatron_r1.rewards.sandbox.programs import COMPILE_LIMITS, compile_cpp, python_job
from megatron_r1.rewards.sandbox.run import Job, _descendants, problem_of, run

PROGRAMS = sorted(
    path for path in Path(__file__).with_name("hostile").iterdir() if path.suffix in (".py", ".cpp")
)
SMALL = Limits(
    cpu_s=1.0,
    wall_s=3.0,
    memory_bytes=128 * MIB,
    max_processes=12,
    file_bytes=8 * MIB,
    disk_bytes=16 * MIB,
    output_bytes=64 * 1024,
)
SMALL_COMPILE = replace(COMPILE_LIMITS, cpu_s=3.0, wall_s=12.0, memory_bytes=256 * MIB)
SECRET = "left outside for nobody to read"


@pytest.fixture(scope="module", params=[Isolation.bubblewrap, Isolation.namespaces])
def isolation(request) -> Isolation:
    problem = problem_of(request.param)
    if problem is not None:
        pytest.skip(f"no {request.param.value} here: {problem}")
    return request.param


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A file, a server and an environment variable outside, and what standard input says of
    them."""
    secret = tmp_path_factory.mktemp("outside") / "secret.txt"
    secret.write_text(SECRET)
    os.environ["MEGATRON_R1_SECRET"] = SECRET
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"{server.getsockname()[1]}\n{secret}\n{os.getpid()}\n".encode()
    del os.environ["MEGATRON_R1_SECRET"]


@pytest.fixture(scope="module", autouse=True)
def _orphans_come_to_us():
    """Whatever outlives its parent becomes our child, so that other tests' processes are not
    mistaken for ours."""
    libc, set_child_subreaper = ctypes.CDLL(None), 36
    libc.prctl(set_child_subreaper, 1, 0, 0, 0)
    yield
    libc.prctl(set_child_subreaper, 0, 0, 0, 0)


def living_descendants() -> set[int]:
    """Processes below this one that are not merely waiting to be collected."""
    living = set()
    for pid in _descendants(os.getpid()):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if state != "Z":
            living.add(pid)
    return living


def test_there_are_at_least_forty():
    assert len(PROGRAMS) >= 40


@pytest.mark.parametrize("path", PROGRAMS, ids=lambda path: path.name)
def test_a_hostile_program_is_contained(path, isolation, outside):
    source = path.read_bytes()
    expected = source.decode().split("\n", 1)[0].split("expect:")[1].strip().split(", ")
    # On a busy machine a second of CPU may take many of the clock.
    limits = SMALL if "wall time" in expected else replace(SMALL, wall_s=50.0)
    before = living_descendants()
    started = time.monotonic()
    if path.suffix == ".py":
        outcome = run(python_job(source, outside, limits), isolation)
    else:
        compiled = compile_cpp(source, isolation, SMALL_COMPILE)
        if compiled.binary is None:
            assert "does not compile" in expected, compiled.reason
            assert SECRET.encode() not in compiled.reason.encode()
            return
        outcome = run(Job(["/box/main"], {"main": compiled.binary}, outside, limits), isolation)
    text = outcome.stdout + outcome.stderr
    assert b"ESCAPED" not in text, text[-500:]
    assert SECRET.encode() not in text
    assert outcome.status.value in expected, (outcome.reason, text[-500:])
    assert len(outcome.stdout) <= SMALL.output_bytes
    # Starting, killing and a busy machine take their share; an endless program would take for ever.
    assert time.monotonic() - started < 120
    # bubblewrap may return some milliseconds before the kernel has ended the last process.
    _wait_until(lambda: living_descendants() <= before, timeout_s=20.0)
    assert not list(Path("/dev/shm").glob("left_behind*"))
    # The grader goes on.
    harmless = run(
        python_job(b"print(int(input()) + 1)", b"41", replace(SMALL, wall_s=50.0)), isolation
    )
    assert harmless.stdout == b"42\n", harmless


def test_killing_the_grader_kills_the_program(isolation, tmp_path):
    grader = tmp_path / "grader.py"
    grader.write_text(
        "from megatron_r1.config.reward import Isolation\n"
        "from megatron_r1.rewards.sandbox.limits import Limits\n"
        "from megatron_r1.rewards.sandbox.programs import python_job\n"
        "from megatron_r1.rewards.sandbox.run import run\n"
        "print('ready', flush=True)\n"
        f"run(python_job(b'import time; time.sleep(977)', b'', Limits(wall_s=900)), "
        f"Isolation.{isolation.name})\n"
    )
    process = subprocess.Popen([sys.executable, str(grader)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    _wait_until(lambda: any(_runs_main(pid) for pid in _descendants(process.pid)))
    pids = _descendants(process.pid)
    process.kill()
    process.wait()
    process.stdout.close()
    _wait_until(lambda: not living_descendants() & set(pids))


def test_a_broken_sandbox_is_an_error_and_no_verdict(isolation):
    with pytest.raises(Exception, match="did not start|No such file|exit"):
        outcome = run(Job(["/box/nothing_here"], limits=SMALL), isolation)
        # prlimit or setpriv says so where the program cannot be started.
        raise RuntimeError(outcome.reason) if outcome.status is Status.exited else AssertionError


def _runs_main(pid: int) -> bool:
    try:
        # prlimit and setpriv carry the program's command line at the end of their own.
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(python_program()[0].encode())
    except OSError:
        return False


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_interrupting_process_one_is_no_failure_of_the_sandbox(isolation):
    # As an unprivileged user the program is process 1's equal, and may send it signals.
    source = b"import os\nfor n in (2, 1, 15, 3, 9):\n    os.kill(1, n)\nprint('here')"
    if os.geteuid() == 0:
        source = source.replace(b"    os.kill", b"  try:\n    os.kill").replace(
            b"n)\nprint", b"n)\n  except OSError: pass\nprint"
        )
    assert run(python_job(source, b"", replace(SMALL, wall_s=50.0)), isolation).stdout == b"here\n"


def test_python_runs_without_site_packages():
    assert {"-I", "-S"} <= set(python_program())
