r"""Answers as plain LaTeX: the many ways to write one thing become one.

Nothing here evaluates anything. What is removed never carries the value: dollars, spacing commands,
``\text`` around a number, a sentence's start and full stop, units, thousands separators.
"""

from __future__ import annotations

import re
import unicodedata

_CHARACTERS = str.maketrans(
    {
        "−": "-",
        "–": "-",
        "×": r"\times ",
        "·": r"\cdot ",
        "⋅": r"\cdot ",
        "÷": "/",
        "≤": r"\le ",
        "≥": r"\ge ",
        "≠": r"\ne ",
        "π": r"\pi ",
        "∞": r"\infty ",
        "∅": r"\emptyset ",
        "∪": r"\cup ",
        "∈": r"\in ",
        "±": r"\pm ",
        "°": r"^\circ ",
    }
)
_SPELLINGS = (
    ("{,}", ","),
    (r"\%", "%"),
    (r"\$", ""),
    (r"\varnothing", r"\emptyset"),
    (r"\{\}", r"\emptyset"),
    ("**", "^"),
)
_PERCENT = re.compile(r"(?<=[\d}])\s*(?:percent|per cent|pct)\.?(?![a-zA-Z])")
_SPACING = re.compile(
    r"(?<!\\)\\(?:[!,;: ]|"
    r"(?:quad|qquad|displaystyle|textstyle|left|right|[bB]igg?[lr]?)(?![a-zA-Z]))|~"
)
_DELIMITERS = re.compile(r"(?<!\\)\\[()\[\]]|\$")
_BOLD = re.compile(r"\*\*(.*)\*\*", re.DOTALL)
_LEAD = re.compile(
    r"(?:so |thus |hence |therefore,? )?(?:the )?(?:final )?(?:answer|result|solution)"
    r"(?: is|\s*:|\s*=)[\s:]*",
    re.IGNORECASE,
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mathit|mbox|rm)\s*\{([^{}]*)\}"
)
_UNIT_WORDS = frozenset(
    "cm mm km m dm inch inches in ft foot feet yard yards yd mile miles mi "
    "kg g mg gram grams pound pounds lb lbs oz ounce ounces ton tons "
    "s sec secs second seconds min mins minute minutes h hr hrs hour hours day days week weeks "
    "month months year years mph kmph km/h m/s ms "
    "l ml liter liters litre litres gallon gallons "
    "dollar dollars cent cents euro euros usd yuan rupees "
    "degree degrees deg radian radians rad "
    "unit units square sq cubic sq. square-units squared cubed "
    "people students men women children apples coins marbles points ways pairs times digits "
    "hz j joule joules n newton newtons w watt watts v volt volts mol k pa".split()
)
_NUMBER_END = r"(?<=[\d})])"
_TEXT_UNIT = re.compile(
    _NUMBER_END + r"\s*\\(?:text|textrm|mathrm|mbox|rm)\s*\{([^{}]*)\}(?:\s*\^\s*\{?[23]\}?)?\s*$"
)
_WORD_UNIT = re.compile(r"(?<=[\d})])\s*([a-zA-Z][a-zA-Z/.\- ]*?)(?:\s*\^\s*\{?[23]\}?)?\s*$")
_NO_UNIT = re.compile(
    r"\b(?:and|or|not|maybe|is|if|where|plus|minus|times|over|by|divided|squared|cubed|dozen|dozens|"
    r"score|hundred|hundreds|thousand|thousands|million|millions|billion|billions|trillion|half|"
    r"halves|thirds?|quarters?)\b",
    re.IGNORECASE,
)
"""Words behind a number that change its value, or take it back."""
_INFINITY = re.compile(
    r"(?<![\\a-zA-Z])(?:(?:positive |plus )?(?P<positive>infinity|inf)|"
    r"(?:negative |minus )(?:infinity|inf))(?![a-zA-Z])",
    re.IGNORECASE,
)
_DEGREES = re.compile(r"\^\s*\{?\s*\\circ\s*\}?")
_THOUSANDS = re.compile(r"(?<![\d.,])\d{1,3}(?:,\d{3})+(?![\d,])")
_SPACED_THOUSANDS = re.compile(r"(?<![\d.])\d{1,3}(?: \d{3})+(?!\d)")
_MIXED = re.compile(r"(?<![\d.}])(\d+)\s+(\d+)\s*/\s*(\d+)$")
_OVER = re.compile(r"\{([^{}]+)\\over\s*([^{}]+)\}")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|(\d+|[a-zA-Z]))")
_E_NOTATION = re.compile(r"(?<![\w.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)$")
_BARE_FUNCTION = re.compile(r"(?<![\\a-zA-Z])(sqrt|pi|sin|cos|tan|ln|log|exp|infty)(?![a-zA-Z])")


def normalise(answer: str) -> str:
    r"""One line of LaTeX without ornaments: ``The answer is $1{,}000$ cm.`` becomes ``1000``."""
    return without_unit(answer)[0]


def without_unit(answer: str) -> tuple[str, str]:
    r"""The same, and the unit that was taken off: ``12 \text{ cm}^2`` becomes ``12``, ``cm^2``."""
    text = answer.strip().translate(_CHARACTERS)
    # After the table, or NFKC would take away a character that it knows.
    text = unicodedata.normalize("NFKC", text)
    bold = _BOLD.fullmatch(text)
    text = bold.group(1) if bold else text
    for old, new in _SPELLINGS:
        text = text.replace(old, new)
    text = _PERCENT.sub("%", text)
    text = _SPACING.sub(_space, _DELIMITERS.sub("", text))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", r"\\frac", text)
    text = _LEAD.sub("", text.strip(), count=1) if _LEAD.match(text.strip()) else text
    text = re.sub(r"\s+", " ", text).strip()
    text = re.sub(r"(?:(?<!\.)\.|[,;:])$", "", text).rstrip()
    text, inner_unit = _strip_units(text)
    text = _strip_wrappers(text)
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    is_angle = re.search(_DEGREES.pattern + r"\s*$", text) is not None
    text, unit = _strip_units(_without_degrees(text))
    unit = inner_unit or unit or ("degrees" if is_angle else "")
    text = _INFINITY.sub(lambda m: r"\infty" if m["positive"] else r"-\infty", text)
    text = re.sub(r"^\+\s*(?=\\infty)", "", text)
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m.group(1) or m.group(2)}}}", text)
    text = _OVER.sub(r"\\frac{\1}{\2}", text)
    text = _BARE_FUNCTION.sub(r"\\\1", text)
    text = re.sub(r"\\sqrt\s*\(([^()]*)\)", r"\\sqrt{\1}", text)
    text = _join_thousands(text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = _E_NOTATION.sub(r"\1 \\cdot 10^{\2}", text)
    return text.strip(), unit


def _space(found: re.Match[str]) -> str:
    # \left and \right leave their delimiter behind; a thin space may separate thousands.
    return "" if found.group()[1:] in ("!", "left", "right") else " "


def _strip_wrappers(text: str) -> str:
    while (stripped := _WRAPPER.sub(r" \1 ", text)) != text:
        text = stripped
    return re.sub(r"\s+", " ", text).strip()


def _strip_units(text: str) -> tuple[str, str]:
    """Without what follows a number and has no value, any text or words that are units; and it."""
    found = _TEXT_UNIT.search(text)
    if found and not _NO_UNIT.search(found.group(1)) and not re.search(r"\d|%", found.group(1)):
        exponent = re.search(r"\^\s*\{?[23]\}?\s*$", found.group())
        return text[: found.start()].rstrip(), found.group(1) + (exponent[0] if exponent else "")
    found = _WORD_UNIT.search(text)
    if found:
        words = found.group(1).lower().replace(".", "").split()
        glued = text[found.start() : found.start(1)] == ""
        # `3x`, `2n` and `4m` may be algebra: a single letter counts after a space only.
        if all(word in _UNIT_WORDS and not (glued and len(word) == 1) for word in words):
            return text[: found.start()].rstrip(), found.group()
    return text, ""


def _without_degrees(text: str) -> str:
    """A number of degrees; in the argument of a function, in radians."""
    if re.search(r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-zA-Z])", text):
        return re.sub(r"(\d+(?:\.\d+)?)\s*" + _DEGREES.pattern, r"(\\frac{\1\\pi}{180})", text)
    return _DEGREES.sub("", text)


def _join_thousands(text: str) -> str:
    # Inside brackets a comma separates: (1,234) is a point or an interval.
    if not re.search(r"[()\[\]{}]", text.replace("{}", "")):
        text = _THOUSANDS.sub(lambda found: found.group().replace(",", ""), text)
    return _SPACED_THOUSANDS.sub(lambda found: found.group().replace(" ", ""), text)
