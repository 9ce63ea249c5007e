"""`answers.tsv`: reference answers, responses, and whether a person calls them right.

In a cell ``@empty`` is nothing, and ``@repeat(TEXT,N)`` is TEXT N times.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from pathlib import Path

_REPEAT = re.compile(r"@repeat\((.*?),(\d+)\)")


@dataclass(frozen=True)
class AnswerCase:
    kind: str
    right: bool
    reference: str
    response: str
    """An answer without a box stands in an <answer> block."""


def read_cases() -> list[AnswerCase]:
    path = Path(__file__).with_name("answers.tsv")
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    return [
        AnswerCase(
            kind=row["kind"],
            right=row["right"] == "1",
            reference=_expand(row["reference"]),
            response=_response(_expand(row["answer"])),
        )
        for row in rows
    ]


def _expand(cell: str) -> str:
    if cell == "@empty":
        return ""
    return _REPEAT.sub(lambda found: found.group(1) * int(found.group(2)), cell)


def _response(answer: str) -> str:
    return answer if "box" in answer else f"<answer>{answer}</answer>"
