"""AIME and MATH-500: a problem and its answer."""

from __future__ import annotations

from megatron_r1.data.problems import Problem
from megatron_r1.evaluation.benchmarks.fields import Asked


def aime(asked: Asked) -> Problem:
    """Every answer is an integer from 0 to 999, often written with leading zeros."""
    answer = asked.text("answer", "Answer")
    if not answer.isascii() or not answer.isdigit() or len(answer) > 3:
        raise ValueError(f"no aime record: its answer {answer!r} is no integer from 0 to 999")
    return Problem(
        id=str(asked.optional("id", "ID") or asked.default_id),
        question=asked.text("problem", "Problem", "question"),
        answer=str(int(answer)),
        grader="math",
    )


def math_500(asked: Asked) -> Problem:
    return Problem(
        id=str(asked.optional("unique_id") or asked.default_id),
        question=asked.text("problem"),
        answer=asked.text("answer"),
        grader="math",
    )
