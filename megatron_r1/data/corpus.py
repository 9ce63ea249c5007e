"""The noisy synthetic corpus of a tiny base model, which RL then has something to sharpen in.

Two manners of answering occur in it, as in the text a large model has read. The hasty one guesses,
is short, and is nearly always wrong. The careful one keeps running totals, slips now and then, and
more often than not answers with another number than the one it has found. A model of this corpus
has learned all of that. RL finds out that thinking pays, and saying what one has found: R1-Zero in
miniature.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from megatron_r1.config.corpus import CorpusConfig
from megatron_r1.data.problems import Problem
from megatron_r1.data.templates import ANSWER, END_ANSWER, END_THINK, TAGS, THINK, render
from megatron_r1.errors import ConfigError

_HASTY_THOUGHTS = ("looks easy", "just a guess", "about right", "no need to think")
_SLIPS = (-10, -2, -1, 1, 2, 10)


def write_corpus(
    problems: Iterable[Problem], *, config: CorpusConfig, seed: int, template: str = "r1_zero"
) -> Iterator[tuple[str, str]]:
    """One (prompt text, response text) for each problem; another seed gives another epoch.

    A document depends on the seed and its problem alone. The response has no space before or
    between its tags: each would be a token.

    Raises:
        ConfigError: a problem of a task other than chain_sum.
    """
    for problem in problems:
        rng = random.Random(f"{seed}/{problem.question}")
        yield render(template, problem.question), _response(_expression(problem), rng, config)


def _response(expression: str, rng: random.Random, config: CorpusConfig) -> str:
    if rng.random() < config.careful_frac:
        thought, answer = _careful(expression, rng, config)
    else:
        thought, answer = _hasty(expression, rng, config.hasty_spread)
    parts = [THINK, thought, END_THINK, ANSWER, str(answer), END_ANSWER]
    return "".join(malform(parts, rng) if rng.random() < config.malformed_frac else parts)


def _careful(expression: str, rng: random.Random, config: CorpusConfig) -> tuple[str, int]:
    """``4 - 1 = 3 - 7 = -4 + 7 = 3`` and its last total.

    A step that slips is off, and the next goes on from it. An answer that strays is one of the
    terms or an earlier total.
    """
    total, terms = _terms(expression)
    thought, met = str(total), [total]
    for sign, number in terms:
        slip = rng.choice(_SLIPS) if rng.random() < config.slip_frac else 0
        total = _apply(total, sign, number) + slip
        thought += f" {sign} {number} = {total}"
        met += [number, total]
    strays = rng.random() < config.stray_frac
    return thought, rng.choice(met[:-1]) if strays else total


def _hasty(expression: str, rng: random.Random, spread: int) -> tuple[str, int]:
    """A thought without arithmetic, and a guess near the truth."""
    total, terms = _terms(expression)
    for sign, number in terms:
        total = _apply(total, sign, number)
    return rng.choice(_HASTY_THOUGHTS), total + rng.randint(-spread, spread)


def malform(parts: list[str], rng: random.Random) -> list[str]:
    """The parts with a tag missing, a tag doubled, the answer outside its tags, or put first."""
    think, answer = parts[:3], parts[3:]
    tag_positions = [index for index, part in enumerate(parts) if part in TAGS]
    match rng.randrange(4):
        case 0:
            missing = rng.choice(tag_positions)
            return parts[:missing] + parts[missing + 1 :]
        case 1:
            doubled = rng.choice(tag_positions)
            return parts[:doubled] + [parts[doubled]] + parts[doubled:]
        case 2:
            return [*think, ANSWER, END_ANSWER, answer[1]]
        case _:
            return [*answer, *think]


def _expression(problem: Problem) -> str:
    """``4 - 1 - 7 + 7`` of a chain_sum problem."""
    task = problem.grader_data.get("entry", {}).get("metadata", {}).get("source_dataset")
    if task != "chain_sum":
        raise ConfigError(
            f"the synthetic corpus is written for data.task=chain_sum, and problem {problem.id} "
            f"comes from {task or 'a file'}. Set data=chain_sum, or start from another base model"
        )
    return problem.grader_data["entry"]["metadata"]["expression"]


def _terms(expression: str) -> tuple[int, list[tuple[str, int]]]:
    """The first number, then (sign, number) for each term after it."""
    first, *rest = expression.split()
    return int(first), [
        (sign, int(number)) for sign, number in zip(rest[::2], rest[1::2], strict=True)
    ]


def _apply(total: int, sign: str, number: int) -> int:
    return total + number if sign == "+" else total - number
