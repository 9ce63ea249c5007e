"""What `grpo_vs_trl.py` makes of its measurements: rates, ratios and their spread.

A round is one turn of one side: `tokens` that it generated, and the seconds of each part.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

Round = Mapping[str, float]


def rates(rounds: Sequence[Round], part: str) -> list[float]:
    """Generated tokens per second of a part, of each round."""
    return [each["tokens"] / each[part] for each in rounds]


def best(sides: Mapping[str, Sequence[Round]]) -> str:
    """The name of the side with the most tokens a second over whole steps, by its median."""
    return max(sides, key=lambda name: statistics.median(rates(sides[name], "whole step")))


def ratios(ours: Sequence[Round], theirs: Sequence[Round], part: str) -> list[float]:
    """Our rate by theirs, of each round: what slows a whole round down cancels."""
    pairs = zip(rates(ours, part), rates(theirs, part), strict=True)
    return [our_rate / their_rate for our_rate, their_rate in pairs]


def spread(values: Sequence[float]) -> tuple[float, float, float]:
    """Smallest, median, largest."""
    return min(values), statistics.median(values), max(values)


def part_shares(rounds: Sequence[Round], parts: Sequence[str]) -> list[float]:
    """Share of each part, and of everything else, in the seconds of all rounds' whole steps."""
    total_s = sum(each["whole step"] for each in rounds)
    shares = [sum(each[part] for each in rounds) / total_s for part in parts]
    return [*shares, 1 - sum(shares)]
