"""Code: right where it passes every test, in the sandbox."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_r1.config.reward import SandboxConfig
from megatron_r1.data.code_tests import CodeTests, check_tests
from megatron_r1.errors import DataError
from megatron_r1.rewards.reasoning import final_part_of
from megatron_r1.rewards.sandbox.limits import MIB, Limits, Outcome
from megatron_r1.rewards.sandbox.programs import (
    COMPILE_LIMITS,
    binary_jobs,
    compile_cpp,
    python_job,
)
from megatron_r1.rewards.sandbox.run import Job, run_many

_FENCE = re.compile(r"^```[ \t]*([\w+#.-]*)[^\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE)
_NAMES = {"python": {"python", "python3", "py", ""}, "cpp": {"cpp", "c++", "cc", "cxx", "c", ""}}
# The solution runs after the word was read, so it finds it neither in a file nor on its input.
_UNIT_HARNESS = """
import sys

def _main():
    word = sys.stdin.readline()
    sys.stdin = open("/dev/null")
    namespace = {"__name__": "solution"}
    with open("/box/solution.py") as file:
        exec(compile(file.read(), "solution.py", "exec"), namespace)
    with open("/box/tests.py") as file:
        exec(compile(file.read(), "tests.py", "exec"), namespace)
    sys.__stdout__.write("\\n" + word)

_main()
"""


@dataclass(frozen=True)
class _Output:
    """What a test wants to see printed."""

    text: str
    may_follow_others: bool = False
    """Of a unit test's word alone, before which a solution may print."""


def passes_tests(
    response: str, grader_data: Mapping[str, Any], config: SandboxConfig
) -> tuple[bool, str]:
    """Whether the response's program passes every test, and the first that it fails.

    Raises:
        DataError: the prompt's tests cannot be read.
        ConfigError: no sandbox can be had here.
        SandboxError: the sandbox itself failed.
    """
    try:
        tests = check_tests(grader_data.get("tests"))
    except ValueError as error:
        raise DataError(str(error)) from error
    source = extract_code(response, tests.language)
    if source is None:
        return False, f"no {tests.language} code block"
    if tests.prelude:
        source = f"{tests.prelude}\n\n{source}"
    limits = _limits(tests, config)
    inputs = [stdin.encode() for stdin, _ in tests.stdio]
    if tests.language == "cpp":
        compiled = compile_cpp(source.encode(), config.isolation)
        if compiled.binary is None:
            return False, f"does not compile, {compiled.reason}"
        jobs = binary_jobs(compiled.binary, inputs, limits)
    else:
        jobs = [python_job(source.encode(), stdin, limits) for stdin in inputs]
    word = secrets.token_hex(16) + "\n"
    if tests.unit:
        jobs.append(_unit_job(source, tests.unit, word, limits))
    expected = [_Output(output) for _, output in tests.stdio]
    return _first_failure(jobs, [*expected, _Output(word, may_follow_others=True)], config)


def wall_budget_s(grader_data: Mapping[str, Any], config: SandboxConfig) -> float:
    """Upper bound of what `passes_tests` takes by the clock; its own limits end it before."""
    tests = check_tests(grader_data.get("tests"))
    count = len(tests.stdio) + bool(tests.unit)
    compile_s = COMPILE_LIMITS.wall_s if tests.language == "cpp" else 0.0
    rounds = math.ceil(count / config.max_parallel)
    # A second for each start and end.
    return compile_s + rounds * (_limits(tests, config).wall_s + 1.0)


def extract_code(response: str, language: str) -> str | None:
    """The last fenced block of the language, or without a name, after the thought."""
    blocks = [
        content
        for name, content in _FENCE.findall(final_part_of(response))
        if name.lower() in _NAMES[language]
    ]
    return blocks[-1] if blocks else None


def _first_failure(
    jobs: Sequence[Job], expected: Sequence[_Output], config: SandboxConfig
) -> tuple[bool, str]:
    """Run as many at once as allowed, and stop at the first round that holds a failure."""
    for start in range(0, len(jobs), config.max_parallel):
        batch = jobs[start : start + config.max_parallel]
        outcomes = run_many(batch, max_parallel=config.max_parallel, isolation=config.isolation)
        for number, outcome in enumerate(outcomes, start=start):
            problem = _problem(outcome, expected[number])
            if problem:
                return False, f"test {number + 1} of {len(jobs)}: {problem}"
    return True, f"passes {len(jobs)} tests"


def _problem(outcome: Outcome, expected: _Output) -> str:
    if not outcome.ok:
        return outcome.reason
    words = outcome.stdout.decode(errors="replace").split()
    wanted = expected.text.split()
    if (words[-len(wanted) :] if expected.may_follow_others else words) == wanted:
        return ""
    return f"wrong output {' '.join(words)[:60]!r}"


def _unit_job(source: str, tests: str, word: str, limits: Limits) -> Job:
    files = {"solution.py": source.encode(), "tests.py": tests.encode()}
    return python_job(_UNIT_HARNESS.encode(), word.encode(), limits, files)


def _limits(tests: CodeTests, config: SandboxConfig) -> Limits:
    own = tests.limits or {}
    return Limits(
        cpu_s=own.get("cpu_s", config.cpu_s),
        wall_s=own.get("wall_s", config.wall_s),
        memory_bytes=int(own.get("memory_mb", config.memory_mb) * MIB),
        max_processes=config.max_processes,
    )
