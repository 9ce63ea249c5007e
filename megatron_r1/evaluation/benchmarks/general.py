"""General ability: a question, and what a judge compares an answer with."""

from __future__ import annotations

from megatron_r1.data.problems import Problem
from megatron_r1.evaluation.benchmarks.fields import Asked

PAIRWISE, REFERENCE = "judge_pairwise", "judge_reference"


def judged(asked: Asked) -> Problem:
    """``baseline``: another model's answer, to be compared with; or ``answer``: a reference."""
    baseline = asked.optional("baseline")
    return Problem(
        id=str(asked.optional("id") or asked.default_id),
        question=asked.text("question"),
        answer=asked.text("baseline", "answer"),
        grader=REFERENCE if baseline is None else PAIRWISE,
    )
