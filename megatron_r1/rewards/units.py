"""What a unit of measurement measures and how large it is, so that 5 km is 5,000 m and never 5 m.

A unit is judged where both answers carry one and both are known here; elsewhere units are left
alone, as in answers to "how many centimetres?".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

_LENGTH, _MASS, _TIME, _MONEY, _DEGREE, _RADIAN = range(6)
_EXPONENTS = {"square": 2, "sq": 2, "squared": 2, "cubic": 3, "cubed": 3}


@dataclass(frozen=True)
class Unit:
    """A product of powers of the base units metre, kilogram, second, dollar, degree and
    radian."""

    powers: tuple[int, ...]
    size: Fraction
    """In base units."""

    def power(self, exponent: int) -> Unit:
        return Unit(tuple(power * exponent for power in self.powers), self.size**exponent)

    def times(self, other: Unit) -> Unit:
        powers = (a + b for a, b in zip(self.powers, other.powers, strict=True))
        return Unit(tuple(powers), self.size * other.size)


def _base(dimension: int, size: str | int) -> Unit:
    return Unit(tuple(int(i == dimension) for i in range(6)), Fraction(size))


_UNITS: dict[str, Unit] = {}
for _dimension, _size, _names in (
    (_LENGTH, "0.001", "mm millimeter millimeters millimetre millimetres"),
    (_LENGTH, "0.01", "cm centimeter centimeters centimetre centimetres"),
    (_LENGTH, "0.1", "dm decimeter decimeters"),
    (_LENGTH, 1, "m meter meters metre metres"),
    (_LENGTH, 1000, "km kilometer kilometers kilometre kilometres"),
    (_LENGTH, "0.0254", "in inch inches"),
    (_LENGTH, "0.3048", "ft foot feet"),
    (_LENGTH, "0.9144", "yd yard yards"),
    (_LENGTH, "1609.344", "mi mile miles"),
    (_MASS, "0.000001", "mg milligram milligrams"),
    (_MASS, "0.001", "g gram grams"),
    (_MASS, 1, "kg kilogram kilograms"),
    (_MASS, "0.45359237", "lb lbs pound pounds"),
    (_MASS, "0.028349523125", "oz ounce ounces"),
    (_TIME, 1, "s sec secs second seconds"),
    (_TIME, 60, "min mins minute minutes"),
    (_TIME, 3600, "h hr hrs hour hours"),
    (_TIME, 86_400, "day days"),
    (_TIME, 604_800, "week weeks"),
    (_MONEY, 1, "dollar dollars usd"),
    (_MONEY, "0.01", "cent cents"),
    (_DEGREE, 1, "degree degrees deg"),  # pi / 180 of the next, which is no fraction
    (_RADIAN, 1, "radian radians rad"),
):
    _UNITS |= dict.fromkeys(_names.split(), _base(_dimension, _size))
_METRE, _SECOND = _UNITS["m"], _UNITS["s"]
_LITRE = Unit(_METRE.power(3).powers, Fraction(1, 1000))
_UNITS |= dict.fromkeys("l liter liters litre litres".split(), _LITRE)
_UNITS["ml"] = Unit(_LITRE.powers, _LITRE.size / 1000)
_UNITS |= dict.fromkeys(("mph",), _UNITS["mi"].times(_UNITS["h"].power(-1)))
_UNITS |= dict.fromkeys(("kmph", "kph"), _UNITS["km"].times(_UNITS["h"].power(-1)))


def unit_of(text: str) -> Unit | None:
    """The unit that words such as ``cm^2``, ``square feet`` or ``km/h`` name; None if unknown."""
    text = re.sub(r"\s*\^\s*\{?\s*([23])\s*\}?", r"^\1", text.lower().replace(".", ""))
    text = re.sub(r"\s+per\s+|\s*/\s*", " / ", text.strip())
    found, sign, exponent = None, 1, 1
    for word in text.split():
        if word == "/":
            sign = -1
            continue
        if word in _EXPONENTS:
            if word.endswith("d") and found is not None:  # `feet squared`
                found = found.power(_EXPONENTS[word])
            exponent = _EXPONENTS[word]
            continue
        name, _, power = word.partition("^")
        if name not in _UNITS:
            return None
        unit = _UNITS[name].power(sign * int(power or exponent))
        found, exponent = unit if found is None else found.times(unit), 1
    return found
