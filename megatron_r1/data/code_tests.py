"""The tests of a code problem, as a prompt file writes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

CODE_LANGUAGES = ("python", "cpp")


@dataclass(frozen=True)
class CodeTests:
    """A prompt's tests: `grader_data["tests"]`."""

    language: str
    """``python`` or ``cpp``."""
    stdio: tuple[tuple[str, str], ...] = ()
    """Standard input and the expected output, compared word by word."""
    unit: str = ""
    """Python that raises where the solution, in the same namespace, is wrong."""
    prelude: str = ""
    """Python put before the solution: imports and helpers that the question gives."""
    limits: Mapping[str, float] | None = None
    """``cpu_s``, ``wall_s``, ``memory_mb`` of this problem."""


def check_tests(record: Any) -> CodeTests:
    """Read and check the tests of one problem.

    Raises:
        ValueError: what is wrong with them.
    """
    if not isinstance(record, dict):
        raise ValueError("'tests' must be an object with language, and stdio or unit")
    unknown = set(record) - {"language", "stdio", "unit", "prelude", "limits"}
    if unknown:
        raise ValueError(f"'tests' has unknown keys: {', '.join(sorted(unknown))}")
    language = record.get("language", "python")
    if language not in CODE_LANGUAGES:
        raise ValueError(f"'tests.language' is {language!r}: choose {', '.join(CODE_LANGUAGES)}")
    unit, limits = record.get("unit", ""), record.get("limits", {})
    if not isinstance(unit, str) or (unit and language != "python"):
        raise ValueError("'tests.unit' must be Python source, for language python")
    prelude = record.get("prelude", "")
    if not isinstance(prelude, str) or (prelude and language != "python"):
        raise ValueError("'tests.prelude' must be Python source, for language python")
    known = {"cpu_s", "wall_s", "memory_mb"}
    if not isinstance(limits, dict) or not all(
        name in known and isinstance(value, int | float) and value > 0
        for name, value in limits.items()
    ):
        raise ValueError(f"'tests.limits' maps {', '.join(sorted(known))} to positive numbers")
    stdio = record.get("stdio", [])
    if not isinstance(stdio, list) or not all(
        isinstance(case, dict)
        and set(case) == {"input", "output"}
        and all(isinstance(text, str) for text in case.values())
        for case in stdio
    ):
        raise ValueError("'tests.stdio' must be a list of {input, output}, both strings")
    if not stdio and not unit:
        raise ValueError("'tests' holds neither stdio nor unit")
    cases = tuple((case["input"], case["output"]) for case in stdio)
    return CodeTests(language, cases, unit, prelude, limits)
