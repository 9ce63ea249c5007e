"""Preference pairs for the helpful reward model, judged as in the paper.

DeepSeek-R1 (arXiv:2501.12948v2) section 3.1: each pair is judged four times with random sides, the
judgements are averaged, a difference above 1 is kept, and the lengths of chosen and rejected are
comparable over the whole data set. How lengths were balanced is not stated; here the longest excess
is dropped first.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_r1.data.preferences import PreferencePair
from megatron_r1.rewards.judge import PAIR_SCORES, Judge, Judgement, Kind

NUM_JUDGEMENTS = 4
MIN_DIFFERENCE = 1.0


@dataclass(frozen=True)
class Candidates:
    """One query with two responses, in no order."""

    id: str
    question: str
    first: str
    second: str


@dataclass(frozen=True)
class PairSet:
    """What became of all candidates."""

    pairs: tuple[PreferencePair, ...]
    """Each with the mean of its judgements as margin, above 1 and at most 2."""
    dropped: Mapping[str, int]
    """``unjudged``, ``too close`` and ``unbalanced length``: how many of each."""
    length_ratio: float
    """Mean characters of chosen over rejected; 1 is balanced, and so is no pair at all."""


def build_pairs(
    candidates: Sequence[Candidates], judge: Judge, *, seed: int, max_length_ratio: float = 1.05
) -> PairSet:
    """Judge every candidate four times and keep the clear ones.

    A pair of which any judgement is missing is dropped as ``unjudged``: a mean of fewer would be
    another measure. Run again, it asks only for what the judge's cache lacks.
    """
    sides = [_random_sides(case.id, seed) for case in candidates]
    cases = [
        (case.question, case.second, case.first, sample)
        if swapped
        else (case.question, case.first, case.second, sample)
        for case, swaps in zip(candidates, sides, strict=True)
        for sample, swapped in enumerate(swaps)
    ]
    judgements = judge.map_compare(cases)
    pairs, dropped = [], {"unjudged": 0, "too close": 0, "unbalanced length": 0}
    for index, case in enumerate(candidates):
        own = judgements[index * NUM_JUDGEMENTS : (index + 1) * NUM_JUDGEMENTS]
        difference = mean_score(own, sides[index])
        if difference is None:
            dropped["unjudged"] += 1
        elif abs(difference) <= MIN_DIFFERENCE:
            dropped["too close"] += 1
        else:
            chosen, rejected = (
                (case.first, case.second) if difference > 0 else (case.second, case.first)
            )
            pairs.append(
                PreferencePair(case.question, chosen, rejected, margin=abs(difference), id=case.id)
            )
    balanced = balance_lengths(pairs, max_length_ratio)
    dropped["unbalanced length"] = len(pairs) - len(balanced)
    return PairSet(tuple(balanced), dropped, _length_ratio(balanced))


def mean_score(judgements: Sequence[Judgement], swapped: Sequence[bool]) -> float | None:
    """By how much the first response is better, from -2 to 2; None where a judgement is missing."""
    if any(judgement.kind is not Kind.verdict for judgement in judgements):
        return None
    scores = [
        -PAIR_SCORES[judgement.verdict] if swap else PAIR_SCORES[judgement.verdict]
        for judgement, swap in zip(judgements, swapped, strict=True)
    ]
    return sum(scores) / len(scores)


def balance_lengths(pairs: Sequence[PreferencePair], max_ratio: float) -> list[PreferencePair]:
    """Drop pairs until the mean lengths of chosen and rejected differ by at most the ratio.

    Those go first whose difference in length is the largest in the direction of the excess.
    """
    kept = list(pairs)
    by_excess = sorted(kept, key=lambda pair: len(pair.chosen) - len(pair.rejected))
    while kept and not 1 / max_ratio <= _length_ratio(by_excess) <= max_ratio:
        by_excess.pop(-1 if _length_ratio(by_excess) > 1 else 0)
        if not by_excess:
            break
    remaining = {id(pair) for pair in by_excess}
    return [pair for pair in kept if id(pair) in remaining]


def _length_ratio(pairs: Sequence[PreferencePair]) -> float:
    chosen = sum(len(pair.chosen) for pair in pairs)
    rejected = sum(len(pair.rejected) for pair in pairs)
    if chosen == rejected:
        return 1.0
    return chosen / rejected if rejected else float("inf")


def _random_sides(name: str, seed: int) -> list[bool]:
    """For each judgement, whether the second response is called A; a function of name and seed."""
    generator = random.Random(f"{seed}/{name}")
    return [generator.random() < 0.5 for _ in range(NUM_JUDGEMENTS)]
