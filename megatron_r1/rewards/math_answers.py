"""math-verify: whether two mathematical answers are equal."""

from __future__ import annotations

import logging
from typing import Any

from megatron_r1.rewards.extract import extract_boxed


def is_equivalent(gold: str, prediction: str) -> bool:
    r"""Whether a prediction equals the reference: ``0.5`` equals ``\frac{1}{2}``.

    The comparison is not symmetric: an equation counts as its right-hand side where the reference
    is a number. There is no time limit here, since math-verify's own needs the main thread; the
    scorer's worker processes have one.

    Raises:
        ValueError: the reference cannot be read as mathematics.
    """
    from math_verify import verify

    gold_parsed = _parse(gold)
    if not gold_parsed:
        raise ValueError(f"math-verify cannot read the reference answer {gold!r}")
    return verify(gold_parsed, _parse(prediction), timeout_seconds=None)


def _parse(answer: str) -> list[Any]:
    """Readings of one answer. It stands between one pair of dollars, or a hedge such as ``3$ or
    $4`` would be read as two answers."""
    from math_verify import parse

    # It warns, once a process, that its own time limit is off.
    logging.getLogger("math_verify").setLevel(logging.ERROR)
    boxed = extract_boxed(answer)
    text = (answer if boxed is None else boxed).replace("$", "")
    return parse(f"${text}$", parsing_timeout=None)
