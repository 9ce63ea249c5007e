"""LiveCodeBench, Codeforces and HumanEval: a task and its tests, which run in the sandbox."""

from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import zlib
from typing import Any

from megatron_r1.data.code_tests import check_tests
from megatron_r1.data.problems import Problem
from megatron_r1.evaluation.benchmarks.fields import Asked, UnsupportedError

_LIVECODEBENCH_TEST_S = 6.0
"""The limit that its own runner has for each test."""
_STDIO = "Read from standard input and write to standard output."
_LEETCODE_PRELUDE = """\
import bisect, collections, functools, heapq, itertools, math, random, re, string, sys
from bisect import *
from collections import *
from functools import *
from heapq import *
from itertools import *
from math import *
from typing import *
"""
_CALLS = """\
import json
for _inputs, _expected in json.loads({cases!r}):
    _arguments = [json.loads(line) for line in _inputs.split("\\n") if line.strip()]
    _found = getattr(Solution(), {name!r})(*_arguments)
    assert json.loads(json.dumps(_found)) == json.loads(_expected)
"""


def humaneval(asked: Asked) -> Problem:
    """The prompt, a function without its body, also stands before the solution: it has imports."""
    prompt, name = str(asked.value("prompt")), asked.text("entry_point")
    tests = {"unit": f"{asked.value('test')}\ncheck({name})\n", "prelude": prompt}
    question = f"Complete this function.\n\n```python\n{prompt.rstrip()}\n```"
    return _program(asked, asked.text("task_id"), question, tests)


def livecodebench(asked: Asked) -> Problem:
    """Programs read standard input, or a class has a method that is called."""
    _check_date(asked)
    metadata = json.loads(asked.optional("metadata") or "{}")
    cases = [*_cases(asked.value("public_test_cases"))]
    cases += _cases(asked.optional("private_test_cases") or "[]")
    question, own_id = asked.text("question_content"), asked.text("question_id")
    limits = {"cpu_s": _LIVECODEBENCH_TEST_S, "wall_s": 2 * _LIVECODEBENCH_TEST_S}
    if "func_name" not in metadata:
        stdio = [{"input": case["input"], "output": case["output"]} for case in cases]
        return _program(
            asked, own_id, f"{question}\n\n{_STDIO}", {"stdio": stdio, "limits": limits}
        )
    pairs = json.dumps([[case["input"], case["output"]] for case in cases])
    calls = _CALLS.format(cases=pairs, name=metadata["func_name"])
    starter = asked.text("starter_code")
    question = f"{question}\n\nComplete this class.\n\n```python\n{starter}\n```"
    limits = {name: value * len(cases) for name, value in limits.items()}
    tests = {"unit": calls, "prelude": _LEETCODE_PRELUDE, "limits": limits}
    return _program(asked, own_id, question, tests)


def codeforces(asked: Asked) -> Problem:
    """Only problems that have one right output for each input: others need their own checkers."""
    if asked.optional("generated_checker") is not None:
        raise UnsupportedError("needs a checker of its own")
    if asked.optional("interaction_format") is not None:
        raise UnsupportedError("interactive")
    if asked.optional("input_mode") not in (None, "stdio"):
        raise UnsupportedError("reads files")
    title, description = asked.text("title"), asked.text("description")
    cases = asked.optional("official_tests")
    if cases is None:
        raise UnsupportedError("has no tests")
    parts = [title, description]
    for name, heading in (
        ("input_format", "Input"),
        ("output_format", "Output"),
        ("note", "Note"),
    ):
        if asked.optional(name) is not None:
            parts.append(f"{heading}: {asked.text(name)}")
    for example in asked.optional("examples") or ():
        parts.append(f"Example input:\n{example['input']}\nExample output:\n{example['output']}")
    time_s, memory_mb = float(asked.value("time_limit")), float(asked.value("memory_limit"))
    tests = {
        "stdio": [{"input": case["input"], "output": case["output"]} for case in cases],
        "limits": {"cpu_s": time_s, "wall_s": 2 * time_s, "memory_mb": memory_mb},
    }
    question = "\n\n".join([*parts, _STDIO])
    return _program(asked, asked.text("id"), question, tests, language=asked.suite.language)


def _program(
    asked: Asked, own_id: str, question: str, tests: dict[str, Any], *, language: str = "python"
) -> Problem:
    tests = {"language": language, **tests}
    check_tests(tests)
    wanted = {"python": "Python", "cpp": "C++"}[language]
    return Problem(
        id=own_id,
        question=f"{question}\n\nGive the whole program in one {wanted} code block.",
        answer="",
        grader="code",
        grader_data={"tests": tests},
    )


def _check_date(asked: Asked) -> None:
    since, until = asked.suite.since, asked.suite.until
    if not since and not until:
        return
    day = asked.text("contest_date")[:10]
    if (since and day < since) or (until and day >= until):
        raise UnsupportedError(f"outside {since or 'the beginning'} to {until or 'today'}")


def _cases(encoded: str) -> list[dict[str, str]]:
    """A JSON list of tests; private ones as base64 of zlib of a pickled JSON text."""
    if not encoded.lstrip().startswith("["):
        try:
            packed = zlib.decompress(base64.b64decode(encoded, validate=True))
            encoded = _TextUnpickler(io.BytesIO(packed)).load()
        except _UNREADABLE as error:
            raise ValueError(
                f"no livecodebench record: its tests cannot be read: {error or 'cut short'}"
            ) from None
        if not isinstance(encoded, str):
            kind = type(encoded).__name__
            raise ValueError(f"no livecodebench record: its tests cannot be read: a pickled {kind}")
    return json.loads(encoded)


_UNREADABLE = (
    binascii.Error,
    zlib.error,
    pickle.UnpicklingError,
    # What else a pickle of other bytes ends in.
    ArithmeticError,
    AttributeError,
    EOFError,
    ImportError,
    LookupError,
    MemoryError,
    TypeError,
    ValueError,
)


class _TextUnpickler(pickle.Unpickler):
    """Reads text and other plain values; a pickle that names any class or function is refused."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"holds {module}.{name} where there should be text")
