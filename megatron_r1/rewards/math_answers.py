r"""Whether two mathematical answers are equal: structure here, values by math-verify.

An answer is a list of alternatives (``1, 2``, ``\{1, 2\}``, ``\pm 1``), a bracketed sequence
(a point or an interval), or one value. The first two are taken apart here, where math-verify would
read ``(1, 2)`` as an interval that a set of two equals; values go to math-verify and sympy.
There is no time limit here: math-verify's own needs the main thread, and sympy computes some powers
in C, out of its reach. The scorer's worker processes have one.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from megatron_r1.rewards.extract import extract_boxed
from megatron_r1.rewards.normalise import without_unit
from megatron_r1.rewards.powers import is_too_large
from megatron_r1.rewards.units import Unit, unit_of

_MAX_ELEMENTS = 64
_FLOAT_DIGITS = 10
"""To which floats inside of expressions are compared: 15 are computed, and 10.1 * 3 is not 30.3."""
_OPENING, _CLOSING = "([{", ")]}"
_RELATION = re.compile(r"\\(?:leq?|geq?|neq?|lt|gt|in)(?![a-zA-Z])|[<>]")
_NAME = re.compile(
    r"\\?[a-zA-Z]+(?:_\{?\w+\}?)?'?(?:\([a-zA-Z](?:,\s*[a-zA-Z])*\))?|\([a-z](?:,\s*[a-z])+\)"
)
_BASED = re.compile(r"([0-9A-Fa-f]+)_\{?(\d+)\}?")
_CLOCK = re.compile(r"\d+(?::\d+)+(?:\s*[ap]\.?m\.?)?", re.IGNORECASE)
_PRIME = re.compile(r"\d\s*(?:'|′|\^\{?\s*\\prime|\\prime)")
_DECIMAL = re.compile(r"[+-]?\d*\.(\d+)")
_MIN_DECIMALS = 6
"""From which on a rounded decimal stands for a number without an end."""
_ROUNDING = 1e-14
"""Relative; that of floats, in which `1.1 * 3` is computed."""
_DEFINED = re.compile(r"([a-zA-Z])\s*=\s*([^=]+)")
_WORD = re.compile(r"(?<![\\a-zA-Z_{])[a-zA-Z]{2,}")
_FUNCTIONS = frozenset("sin cos tan cot sec csc log ln exp sqrt arcsin arccos arctan".split())
_LETTER_RUN = re.compile(r"[a-z]{2,3}")


def is_equivalent(gold: str, prediction: str) -> bool:
    r"""Whether a prediction equals the reference: ``0.5`` equals ``\frac{1}{2}``.

    The comparison is not symmetric: an equation counts as its right-hand side where the reference
    is a number. A percentage may be written as 25 or as 0.25 where the reference is ``25\%``, and
    the other way round. Where both carry a unit that `units.py` knows, it counts; where one does
    not, neither does.

    A decimal is the number that it says. Only for a number without an end, such as
    ``\sqrt{8}`` or 1/3, is a decimal right that is correctly rounded, to six decimals or more.

    Raises:
        ValueError: the reference is empty, or cannot be read as mathematics or text.
    """
    gold_text, gold_unit = _prepare(gold)
    predicted_text, predicted_unit = _prepare(prediction)
    if not gold_text:
        raise ValueError(f"math-verify cannot read the reference answer {gold!r}")
    if not predicted_text:
        return False
    if gold_unit is not None and predicted_unit is not None:
        if gold_unit.powers != predicted_unit.powers:
            return False
        if gold_unit.size != predicted_unit.size:
            ratio = predicted_unit.size / gold_unit.size
            predicted_text = (
                rf"({predicted_text}) \cdot \frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
            )
    return _equal(gold_text, predicted_text)


def _prepare(answer: str) -> tuple[str, Unit | None]:
    boxed = extract_boxed(answer)
    text, unit = without_unit(answer if boxed is None else boxed)
    return text, unit_of(unit)


def _equal(gold: str, predicted: str) -> bool:
    if _squeezed(gold) == _squeezed(predicted):
        return True
    if is_too_large(predicted):
        return False
    if _is_text(gold) or _is_text(predicted):
        return _squeezed(gold).casefold() == _squeezed(predicted).casefold()
    if _CLOCK.fullmatch(gold) or _CLOCK.fullmatch(predicted):
        return False
    if _PRIME.search(gold) or _PRIME.search(predicted):
        return False  # feet, minutes or a derivative, which math-verify reads over
    if _BASED.fullmatch(gold):
        return _digits_of(gold) == _digits_of(predicted)
    predicted = _without_definition(gold, predicted)
    if "=" in gold and "=" not in predicted:
        gold = _without_definition(predicted, gold)
    gold_parts, predicted_parts = _split(gold), _split(predicted)
    if gold_parts.kind == "sequence":
        predicted_parts = _as_point(predicted_parts)
    elif predicted_parts.kind == "sequence":
        gold_parts = _as_point(gold_parts)
    if (
        gold_parts.kind == "one"
        and predicted_parts.kind == "set"
        and len(predicted_parts.items) > 1
        and not _is_compound(gold)
        and not _is_compound(predicted)
    ):
        return False  # one value was asked for: `3 or 3` hedges, too
    if gold_parts.kind == predicted_parts.kind == "one":
        # math-verify would take the right-hand side of 1 = 3.
        contradicts = "=" in predicted and "=" not in gold and not _RELATION.search(gold)
        return not contradicts and _equal_values(gold, predicted)
    if gold_parts.kind == predicted_parts.kind == "sequence":
        return (
            gold_parts.brackets == predicted_parts.brackets
            and len(gold_parts.items) == len(predicted_parts.items)
            and all(map(_equal, gold_parts.items, predicted_parts.items))
        )
    if "set" in (gold_parts.kind, predicted_parts.kind):
        if "sequence" in (gold_parts.kind, predicted_parts.kind):
            return False
        if not any(_is_compound(part) for part in (gold, predicted)):
            return _same_elements(gold_parts.items, predicted_parts.items)
    if gold_parts.kind == "sequence" and _RELATION.search(predicted):
        # math-verify turns the reference's relation into an interval, never the answer's.
        return _verify(predicted, gold)
    return _verify(gold, predicted)


@dataclass(frozen=True)
class _Parts:
    kind: str
    """``one`` value, a ``sequence`` in brackets, or a ``set``, whose order does not count."""
    items: tuple[str, ...]
    brackets: str = ""


def _split(text: str) -> _Parts:
    r"""An answer's outermost structure."""
    if text.startswith(r"\pm"):
        value = text.removeprefix(r"\pm").strip()
        return _Parts("set", (value, f"-({value})"))
    if text.startswith(r"\{") and text.endswith(r"\}") and _is_one_group(text):
        return _Parts("set", _top_level_items(text[2:-2]))
    if text[0] in "([" and text[-1] in ")]" and _is_one_group(text):
        items = _top_level_items(text[1:-1])
        if len(items) > 1:
            return _Parts("sequence", items, text[0] + text[-1])
    items = _top_level_items(text)
    if len(items) > 1 and not any(_CHAIN.search(item) for item in items):
        return _Parts("set", items)
    return _Parts("one", (text,))


_CHAIN = re.compile(r"\\c[ua]p(?![a-zA-Z])")
_AND_OR = re.compile(r"(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])|[,;]")


def _as_point(parts: _Parts) -> _Parts:
    """``x=3, y=-2`` as the point (3, -2): coordinates in the order of their letters."""
    found = [_DEFINED.fullmatch(item) for item in parts.items]
    if parts.kind != "set" or not all(found):
        return parts
    coordinates = {match[1]: match[2].strip() for match in found if match}
    if len(coordinates) < len(found):
        return parts
    return _Parts("sequence", tuple(coordinates[name] for name in sorted(coordinates)), "()")


def _top_level_items(text: str) -> tuple[str, ...]:
    """Split at commas, semicolons, ``and`` and ``or`` outside every bracket; empty items go."""
    depth = [0]
    position = 0
    while position < len(text):
        char = text[position]
        depth.append(depth[-1] + (char in _OPENING) - (char in _CLOSING))
        position += 1
    items, start = [], 0
    for found in _AND_OR.finditer(text):
        if depth[found.start()] == 0:
            items.append(text[start : found.start()])
            start = found.end()
    items.append(text[start:])
    return tuple(stripped for item in items if (stripped := item.strip()))


def _is_one_group(text: str) -> bool:
    """Whether the first bracket closes at the very end."""
    depth = 0
    for position, char in enumerate(text):
        depth += (char in _OPENING) - (char in _CLOSING)
        if depth == 0 and char in _CLOSING:
            return position == len(text) - 1
    return False


def _same_elements(gold: tuple[str, ...], predicted: tuple[str, ...]) -> bool:
    """Whether each element has its equal on the other side; repetitions do not count."""
    if max(len(gold), len(predicted)) > _MAX_ELEMENTS:
        return False
    return all(any(_equal(g, p) for p in predicted) for g in gold) and all(
        any(_equal(g, p) for g in gold) for p in predicted
    )


def _without_definition(reference: str, text: str) -> str:
    """Drop ``x =`` before what the reference gives without it, and ``x \\in`` likewise.

    A chain such as ``3 \\times 4 = 13`` stays whole where a side without letters differs from the
    reference: it is then no answer at all.
    """
    member = re.match(r"[a-zA-Z]\s*\\in(?![a-zA-Z])\s*", text)
    if member and r"\in" not in reference.replace(r"\infty", ""):
        return text[member.end() :]
    if "=" in reference or _RELATION.search(text) or len(_top_level_items(text)) > 1:
        return text
    *sides, last = (side.strip() for side in text.split("="))
    if not sides or not last:
        return text
    if len(sides) == 1 and _NAME.fullmatch(last) and not _NAME.fullmatch(sides[0]):
        sides, last = [last], sides[0]  # 3 = x
    if _NAME.fullmatch(sides[0]):
        sides = sides[1:]
    if all(re.search(r"(?<!\\)[a-zA-Z](?![a-zA-Z])", side) for side in sides):
        return last
    return last if all(side and _equal_values(last, side) for side in sides) else text


def _equal_values(gold: str, predicted: str) -> bool:
    gold_is_percent, predicted_is_percent = gold.endswith("%"), predicted.endswith("%")
    if gold_is_percent or predicted_is_percent:
        gold_value, predicted_value = gold.rstrip("% "), predicted.rstrip("% ")
        if not gold_value or not predicted_value:
            return False
        if _equal_numbers(gold_value, predicted_value):  # a sign on one side is a unit
            return True
        if gold_is_percent == predicted_is_percent:
            return False
        if gold_is_percent:
            return _verify(rf"\frac{{{gold_value}}}{{100}}", predicted_value)
        return _verify(gold_value, rf"\frac{{{predicted_value}}}{{100}}")
    return _equal_numbers(gold, predicted)


def _equal_numbers(gold: str, predicted: str) -> bool:
    """Values; see `is_equivalent` for decimals."""
    if _DECIMAL.fullmatch(gold) and _DECIMAL.fullmatch(predicted):
        return Fraction(gold) == Fraction(predicted)
    for decimal, other in ((gold, predicted), (predicted, gold)):
        found = _DECIMAL.fullmatch(decimal)
        if found:
            verdict = _is_decimal_of(decimal, len(found[1]), other)
            if verdict is not None:
                return verdict
    return _verify(gold, predicted)


def _is_decimal_of(decimal: str, num_decimals: int, text: str) -> bool | None:
    """Whether a decimal is a number or its right rounding; None where the text is no number."""
    import sympy

    value = next(iter(_parse(text)), None)
    if not isinstance(value, sympy.Expr) or not value.is_number or not value.is_extended_real:
        return None
    written = sympy.Rational(decimal)
    gap = abs(sympy.N(value, 30 + len(decimal)) - written)
    if gap <= _ROUNDING * max(1, abs(written)):
        return True
    is_endless = value.is_rational is False or (
        isinstance(value, sympy.Rational) and _has_no_end(int(value.q))
    )
    return bool(
        is_endless
        and num_decimals >= _MIN_DECIMALS
        and gap <= sympy.Rational(1, 2 * 10**num_decimals)
    )


def _has_no_end(denominator: int) -> bool:
    for factor in (2, 5):
        while denominator % factor == 0:
            denominator //= factor
    return denominator != 1


def _verify(gold: str, predicted: str) -> bool:
    from math_verify import verify

    gold_parsed = _parse(gold)
    if not gold_parsed:
        raise ValueError(f"math-verify cannot read the reference answer {gold!r}")
    return verify(
        gold_parsed, _parse(predicted), float_rounding=_FLOAT_DIGITS, timeout_seconds=None
    )


def _parse(answer: str) -> list[Any]:
    """Readings of one answer. It stands between one pair of dollars, or a hedge such as ``3$ or
    $4`` would be read as two answers."""
    from math_verify import parse

    # It warns, once a process, that its own time limit is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    return parse(f"${answer.replace('$', '')}$", parsing_timeout=None)


def _is_text(answer: str) -> bool:
    """Whether it holds words: then no evaluator should look for mathematics in it."""
    words = [word for word in _WORD.findall(answer) if word not in _FUNCTIONS | {"and", "or", "in"}]
    # A run of two or three small letters is a product of variables, as in `ab` or `xyz`.
    return any(not _LETTER_RUN.fullmatch(word) for word in words) or not re.search(
        r"[\w\\]", answer
    )


def _is_compound(text: str) -> bool:
    return bool(_CHAIN.search(text) or _RELATION.search(text))


def _digits_of(text: str) -> tuple[str, ...]:
    found = _BASED.fullmatch(text)
    return (found.group(1).lower(), found.group(2)) if found else (text,)


def _squeezed(text: str) -> str:
    """Without spaces, but for those between digits: 1 2 is not 12."""
    return re.sub(r"(?<![\d.,])\s+|\s+(?![\d.,])", "", text)
