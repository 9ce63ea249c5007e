"""Problems of one's own: a file of JSONL, CSV or Parquet, one object a line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from megatron_r1.data import gym_tasks
from megatron_r1.data.code_tests import check_tests
from megatron_r1.data.json_lines import text_of
from megatron_r1.data.languages import LANGUAGES
from megatron_r1.data.problems import Problem
from megatron_r1.data.records import line_id, parse_records
from megatron_r1.errors import ConfigError, DataError

GRADERS = ("math", "exact", "choice", "code")


def read_jsonl(
    path: str | Path, *, max_lines: int | None = None, bad_lines: list[DataError] | None = None
) -> list[Problem]:
    """Read ``question``, ``answer`` and what docs/rewards.md lists; other keys are left alone.

    Without an id a problem is named after the file and its line. The grader is ``math`` unless
    named; ``code`` has ``tests`` and needs no answer. `max_lines` stops there; None reads the whole
    file. `bad_lines` as in `parse_records`.

    Raises:
        DataError: the file is missing or holds no problem, or a line is unusable: ``file:line``,
            what is wrong, and how the line starts.
    """
    return parse_records(
        path,
        lambda record, number: problem_of(record, default_id=line_id(path, number)),
        what="problem",
        way_out="Set data.path or data.heldout_path to a file in JSONL or Parquet",
        max_lines=max_lines,
        bad_lines=bad_lines,
    )


def problem_of(record: dict[str, Any], default_id: str) -> Problem:
    """One record, checked; raises ValueError with what is wrong."""
    question = text_of(record, "question")
    grader = text_of(record, "grader") if "grader" in record else "math"
    answer = "" if grader == "code" and "answer" not in record else text_of(record, "answer")
    return Problem(
        id=text_of(record, "id") if "id" in record else default_id,
        question=question,
        answer=answer,
        grader=grader,
        grader_data=_grader_data(grader, question, answer, record),
        dataset=text_of(record, "dataset") if "dataset" in record else "",
        language=_language(record),
    )


def _language(record: dict[str, Any]) -> str | None:
    if "language" not in record:
        return None
    code = text_of(record, "language")
    if code not in LANGUAGES:
        raise ValueError(f"'language' is {code!r}: choose one of {', '.join(LANGUAGES)}")
    return code


def _grader_data(grader: str, question: str, answer: str, record: dict[str, Any]) -> dict[str, Any]:
    """What the grader needs besides the answer; raises ValueError where that is unusable."""
    if grader == "code":
        check_tests(record.get("tests"))
        return {"tests": record["tests"]}
    if grader == "choice":
        choices = record.get("choices", [])
        if not isinstance(choices, list) or not all(isinstance(text, str) for text in choices):
            raise ValueError("'choices' must be a list of strings, from option A on")
        return {"choices": choices}
    if grader in GRADERS:
        return {}
    if not grader.startswith(gym_tasks.GRADER_PREFIX):
        raise ValueError(
            f"grader {grader!r} is unknown: choose {', '.join(GRADERS)} or "
            f"{gym_tasks.GRADER_PREFIX}<task>"
        )
    try:
        gym_tasks.check_task(grader.removeprefix(gym_tasks.GRADER_PREFIX))
    except ConfigError as error:
        raise ValueError(f"grader {grader!r}: {error}") from error
    return {"entry": {"question": question, "answer": answer, "metadata": {}}, "options": {}}
