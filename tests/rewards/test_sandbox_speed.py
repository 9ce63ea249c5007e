"""What the sandbox costs a small program: both ways in pairs, on the same machine."""

from __future__ import annotations

import statistics
import subprocess
import time

import pytest

from megatron_r1.config.reward import Isolation
from megatron_r1.rewards.sandbox.isolation import python_program
from megatron_r1.rewards.sandbox.limits import Limits
from megatron_r1.rewards.sandbox.programs import python_job
from megatron_r1.rewards.sandbox.run import problem_of, run

SMALL_PROGRAM = b"""
import sys
count = int(sys.stdin.readline())
sieve = bytearray([1]) * (count + 1)
for number in range(2, int(count ** 0.5) + 1):
    if sieve[number]:
        sieve[number * number :: number] = bytes(len(range(number * number, count + 1, number)))
print(sum(sieve) - 2)
"""
NUM_PAIRS = 15


def test_a_small_program_takes_at_most_twice_as_long(tmp_path):
    problem = problem_of(Isolation.bubblewrap)
    if problem is not None:
        pytest.skip(f"no bubblewrap here: {problem}")
    path = tmp_path / "main.py"
    path.write_bytes(SMALL_PROGRAM)
    ratios = []
    for _ in range(NUM_PAIRS):
        started = time.perf_counter()
        bare = subprocess.run(
            [*python_program(), str(path)],
            input=b"1000000\n",
            capture_output=True,
        )
        middle = time.perf_counter()
        outcome = run(python_job(SMALL_PROGRAM, b"1000000\n", Limits()), Isolation.bubblewrap)
        ratios.append((time.perf_counter() - middle) / (middle - started))
        assert outcome.stdout == bare.stdout == b"78498\n"
    # The median: another process of this machine may take any single run.
    assert statistics.median(ratios) <= 2.0, sorted(ratios)
