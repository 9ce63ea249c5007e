"""Sums of three small numbers, asked in two languages, and how a chain of thought is written.

Untidy: ``3 add 4 makes 7 减 2 得 5``, one line that runs on and slips between languages, and a bare
number as the answer. Readable: a sentence for each step, in the language of the question, and a
summary with the number in a box.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass

from megatron_r1.data.templates import ANSWER, END_ANSWER, END_THINK, THINK
from megatron_r1.data.tiny_world.parts import Part, part_of
from megatron_r1.data.tiny_world.words import TONGUES, Tongue, other_than

LARGEST = 7
"""Of the numbers in a sum. A tiny model must see each pair of a total and a term often: with 7
there are 294 of them, with 9 there would be 486."""


@dataclass(frozen=True)
class Sum:
    """``first`` and the signed numbers after it, in a language."""

    terms: tuple[int, ...]
    """The first as it is, the others signed; none is 0."""
    tongue: Tongue

    @property
    def expression(self) -> str:
        first, *rest = self.terms
        return str(first) + "".join(f" {'-' if n < 0 else '+'} {abs(n)}" for n in rest)

    @property
    def question(self) -> str:
        return self.tongue.sum_question.format(self.expression)

    @property
    def total(self) -> int:
        return sum(self.terms)

    @property
    def part(self) -> Part:
        return part_of(f"sum {self.expression}")


@dataclass(frozen=True)
class Step:
    """``before`` and ``term`` make ``after``, or so somebody wrote."""

    before: int
    term: int
    after: int

    @property
    def is_right(self) -> bool:
        return self.before + self.term == self.after


def all_sums() -> list[Sum]:
    """Every sum of three numbers from 1 to `LARGEST`, in both languages."""
    digits = range(1, LARGEST + 1)
    signed = [sign * n for n in digits for sign in (1, -1)]
    return [
        Sum((a, b, c), tongue) for a in digits for b in signed for c in signed for tongue in TONGUES
    ]


def parse_sum(question: str) -> Sum | None:
    """The sum that a question asks for; None where it asks for something else."""
    for tongue in TONGUES:
        before, _, after = tongue.sum_question.partition("{}")
        pattern = re.escape(before) + r"(\d(?: [-+] \d){2})" + re.escape(after)
        found = re.fullmatch(pattern, question.strip())
        if found:
            numbers = re.findall(r"(?:[-+] )?\d", found.group(1))
            return Sum(tuple(int(n.replace(" ", "")) for n in numbers), tongue)
    return None


def right_steps(asked: Sum) -> list[Step]:
    steps, total = [], asked.terms[0]
    for term in asked.terms[1:]:
        steps.append(Step(total, term, total + term))
        total += term
    return steps


def untidy_thought(steps: list[Step], tongue: Tongue, other_frac: float, rng: random.Random) -> str:
    """One line; each step is in the other language with this chance."""
    text = str(steps[0].before)
    for step in steps:
        spoken = other_than(tongue) if rng.random() < other_frac else tongue
        sign = spoken.take if step.term < 0 else spoken.add
        text += f" {sign} {abs(step.term)} {spoken.makes} {step.after}"
    return text


def readable_thought(
    steps: list[Step], tongue: Tongue, other_frac: float, rng: random.Random
) -> str:
    """A sentence for each step; each is in the other language with this chance."""
    return " ".join(untidy_thought([step], tongue, other_frac, rng) + tongue.stop for step in steps)


def summary(total: int, tongue: Tongue) -> str:
    return tongue.summary.format(f"\\boxed{{{total}}}") + tongue.stop


def response(thought: str, answer: str) -> str:
    return f"{THINK}{thought}{END_THINK}{ANSWER}{answer}{END_ANSWER}"


def read_steps(thought: str) -> list[Step] | None:
    """The steps of a chain, however tidy and in whatever language; None where it is none."""
    adds = "|".join(tongue.add for tongue in TONGUES)
    takes = "|".join(tongue.take for tongue in TONGUES)
    makes = "|".join(tongue.makes for tongue in TONGUES)
    step = re.compile(rf"\s*({adds}|{takes})\s+(\d+)\s+(?:{makes})\s+(-?\d+)")
    start = re.match(r"\s*(-?\d+)", thought)
    if start is None:
        return None
    steps, total, at = [], int(start.group(1)), start.end()
    while at < len(thought):
        restated = re.compile(r"[.。]\s*(-?\d+)").match(thought, at)
        if restated:
            if int(restated.group(1)) != total:
                return None
            at = restated.end()
        elif re.fullmatch(r"[.。]?\s*", thought[at:]):
            break
        found = step.match(thought, at)
        if found is None:
            return None
        sign = -1 if found.group(1) in takes.split("|") else 1
        after = int(found.group(3))
        steps.append(Step(total, sign * int(found.group(2)), after))
        total, at = after, found.end()
    return steps or None
