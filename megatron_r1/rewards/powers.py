r"""Answers that would keep sympy busy for minutes or take gigabytes; told from their text alone."""

from __future__ import annotations

import math
import re

MAX_ANSWER_CHARS = 2_000
"""A longer answer is compared as text alone."""
_MAX_DEPTH = 30
_MAX_DIGITS = 400
_MAX_EXPONENT_DIGITS = 4
_MAX_DEGREE = 100
"""Of a power of a sum in one variable, with those that it is nested in."""
_MAX_TERMS = 200
"""Of a power of a sum, multiplied out: 0.4 s of sympy's time for one in three variables."""
_MAX_TERMS_OF_FUNCTIONS = 50
"""The same with roots or trigonometry inside, which sympy tries to simplify: 15 s at 190."""
_OPENING, _CLOSING = "([{", ")]}"


def is_too_large(answer: str) -> bool:
    r"""Whether sympy would need minutes or gigabytes: very long, deep, or a tower of powers.

    What this misses, the scorer's time limit catches; each costs a worker process.
    """
    if len(answer) > MAX_ANSWER_CHARS or re.search(rf"\d{{{_MAX_DIGITS},}}", answer):
        return True
    depth = deepest = 0
    for char in answer:
        depth += (char in _OPENING) - (char in _CLOSING)
        deepest = max(deepest, depth)
    if deepest > _MAX_DEPTH:
        return True
    plain = re.sub(r"[\s{}()]", "", answer)
    tower = re.search(r"\^-?\w+\^-?\w+\^", plain) or any(
        int(exponent) > 1 and int(power) * math.log10(int(exponent)) > _MAX_EXPONENT_DIGITS
        for exponent, power in re.findall(r"\^(\d{1,9})\^(\d{1,9})", plain)
    )
    power = re.search(r"\^\d{5,}", plain)
    factorial = re.search(r"(?:\d{5,}|\^\d+|!!)!", plain)
    return any((tower, power, factorial)) or _is_wide(answer)


def _is_wide(answer: str) -> bool:
    """Whether a power of a sum, or a nest of them, has too many terms or digits."""
    text = re.sub(r"\\left|\\right|\\cdot|\s", "", answer)
    variables = set(re.findall(r"(?<![\\a-zA-Z])[a-zA-Z](?![a-zA-Z])", text))
    has_functions = re.search(r"\\(?:sqrt|sin|cos|tan|cot|sec|csc|ln|log|exp)", text)
    max_terms = _MAX_TERMS_OF_FUNCTIONS if has_functions else _MAX_TERMS
    outer: list[tuple[int, int]] = []
    degree, terms = 1, 1  # of what is open: the largest inside, and how many are added up
    for position, char in enumerate(text):
        if char in _OPENING:
            outer.append((degree, terms))
            degree, terms = 1, 1
        elif char in _CLOSING and outer:
            exponent = _exponent_at(text, position + 1)
            degree *= exponent
            if exponent > 1 and terms > 1:
                if len(variables) > 1 and math.comb(exponent + terms - 1, terms - 1) > max_terms:
                    return True
                if degree >= (_MAX_DEGREE if variables else 10**_MAX_EXPONENT_DIGITS):
                    return True
            degree_outside, terms_outside = outer.pop()
            degree, terms = max(degree, degree_outside), terms_outside
        elif char in "+-" and position and text[position - 1] not in _OPENING + "^":
            terms += 1
    return False


def _exponent_at(text: str, position: int) -> int:
    found = re.compile(r"\^\{?(\d{1,9})").match(text, position)
    return max(1, int(found[1])) if found else 1
