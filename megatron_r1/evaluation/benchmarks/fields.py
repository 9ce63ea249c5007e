"""What the adapters of public formats share."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_r1.config.evaluation import SuiteConfig
from megatron_r1.data.problems import Problem


class UnsupportedError(Exception):
    """A problem that cannot be graded here; skipped, and counted under this reason."""


@dataclass(frozen=True)
class Asked:
    """One record with what its adapter may need beside it."""

    record: Mapping[str, Any]
    default_id: str
    suite: SuiteConfig
    seed: int

    def value(self, *names: str) -> Any:
        """The first field that is there and says something.

        Raises:
            ValueError: none is; the message lists what the record has.
        """
        found = self.optional(*names)
        if found is None:
            raise ValueError(
                f"no {self.suite.format.value} record: it lacks {' or '.join(names)}, and has "
                f"{', '.join(map(str, self.record)) or 'no field'}"
            )
        return found

    def optional(self, *names: str) -> Any:
        for name in names:
            if self.record.get(name) not in (None, "", []):
                return self.record[name]
        return None

    def text(self, *names: str) -> str:
        return str(self.value(*names)).strip()


Adapter = Callable[[Asked], Problem]
"""Raises ValueError where the record is of another format, UnsupportedError where it is not."""


def choice_problem(asked: Asked, own_id: str, question: str, choices: Sequence[str], right: int):
    """A question with its options in lines from A on."""
    letters = [chr(ord("A") + index) for index in range(len(choices))]
    options = "\n".join(f"{letter}) {text}" for letter, text in zip(letters, choices, strict=True))
    return Problem(
        id=own_id,
        question=f"{question}\n\n{options}\n\nAnswer with the letter of the right option.",
        answer=letters[right],
        grader="choice",
        grader_data={"choices": list(choices)},
    )


def shuffled(choices: Sequence[str], seed: int, own_id: str) -> list[str]:
    """An order that depends on the seed and the problem alone."""
    order = list(choices)
    random.Random(f"{seed}/{own_id}").shuffle(order)
    return order
