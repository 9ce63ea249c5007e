"""Signals that ask for a checkpoint."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[1]

WARNED = """
import os, signal, subprocess, threading, time
from megatron_r1 import signals

signals.listen()
threading.Thread(target=time.sleep, args=(1,)).start()
child = subprocess.Popen(["sleep", "60"])
print(signals.signal_to_stop())
os.killpg(0, signal.SIGUSR1)
time.sleep(0.2)
print(signals.signal_to_stop(), child.poll())
child.kill()
"""
TERMINATED = """
import os, signal
from megatron_r1 import signals

with signals.terminate_later():
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)
        print(signals.signal_to_stop(), flush=True)
os.kill(os.getpid(), signal.SIGTERM)
print("still here")
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        start_new_session=True,
    )


def test_a_warning_is_kept_for_later_and_ends_no_child():
    assert run(WARNED).stdout.split() == ["0", str(int(signal.SIGUSR1)), "None"]


def test_sigterm_is_noted_within_the_block_and_ends_the_process_behind_it():
    done = run(TERMINATED)
    assert done.stdout.split() == 2 * [str(int(signal.SIGTERM))]
    assert done.returncode == -signal.SIGTERM


SHELTERED = """
import os, signal, subprocess
from megatron_r1 import signals

with signals.children_outlive_sigterm():
    sheltered = subprocess.Popen(["sleep", "60"])
exposed = subprocess.Popen(["sleep", "60"])
for child in (sheltered, exposed):
    child.terminate()
print(exposed.wait(), sheltered.poll())
sheltered.kill()
"""


def test_children_of_the_block_outlive_a_sigterm():
    assert run(SHELTERED).stdout.split() == [str(-signal.SIGTERM), "None"]


ABANDONED = """
import multiprocessing, os, signal, time
from megatron_r1 import signals

context = multiprocessing.get_context("fork")
with signals.children_end_with_us():
    mortal = context.Process(target=time.sleep, args=(600,))
    mortal.start()
other = context.Process(target=time.sleep, args=(600,))
other.start()
print(mortal.pid, other.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has PR_SET_PDEATHSIG")
def test_what_is_forked_in_the_block_ends_with_a_killed_parent():
    program = [sys.executable, "-c", ABANDONED]
    parent = subprocess.Popen(program, stdout=subprocess.PIPE, text=True)
    mortal, other = map(psutil.Process, map(int, parent.stdout.readline().split()))
    try:
        assert parent.wait(timeout=60) == -signal.SIGKILL
        gone, _ = psutil.wait_procs([mortal], timeout=10)
        assert gone == [mortal]
        assert other.is_running()  # it would have lived, were it not for the block
    finally:
        other.kill()
