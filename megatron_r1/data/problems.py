"""Problems before they are rendered, and the split that decides who may see them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

HELDOUT_SIDE_FRAC = 0.1
"""Share of all possible questions that no run ever trains on. A constant, so that a question's side
depends on nothing but its text."""


@dataclass(frozen=True)
class Problem:
    """A question with what its grader needs; `types.Prompt` is the same, rendered and tokenised."""

    id: str
    question: str
    answer: str
    grader: str
    grader_data: Mapping[str, Any] = field(default_factory=dict)
    dataset: str = ""
    language: str | None = None


@dataclass(frozen=True)
class Splits:
    """Disjoint by question."""

    train: tuple[Problem, ...]
    corpus: tuple[Problem, ...]
    heldout_side: tuple[Problem, ...]
    """Those that may be held out; the ones beyond `data.heldout_problems` are used by nobody."""


def remove_duplicates(problems: Iterable[Problem]) -> list[Problem]:
    """The first problem of each question, in order."""
    first: dict[str, Problem] = {}
    for problem in problems:
        first.setdefault(problem.question, problem)
    return list(first.values())


def split_by_hash(problems: Sequence[Problem], *, corpus_frac: float) -> Splits:
    """A question's hash alone decides its side, then whether it belongs to the corpus.

    So a problem is held out in every run, however many others were drawn beside it.
    """
    heldout_side = [p for p in problems if _unit_hash("heldout", p.question) < HELDOUT_SIDE_FRAC]
    others = [p for p in problems if _unit_hash("heldout", p.question) >= HELDOUT_SIDE_FRAC]
    train, corpus = split_corpus(others, corpus_frac=corpus_frac)
    return Splits(train=train, corpus=corpus, heldout_side=tuple(heldout_side))


def split_corpus(
    problems: Sequence[Problem], *, corpus_frac: float
) -> tuple[tuple[Problem, ...], tuple[Problem, ...]]:
    """(train, corpus): about `corpus_frac` of the problems go to the corpus, by a hash of its
    own."""
    train = tuple(p for p in problems if _unit_hash("corpus", p.question) >= corpus_frac)
    corpus = tuple(p for p in problems if _unit_hash("corpus", p.question) < corpus_frac)
    return train, corpus


def _unit_hash(purpose: str, question: str) -> float:
    """Uniform in [0, 1), independent from one purpose to another."""
    digest = hashlib.sha256(f"{purpose}\n{question}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
