"""What is in a data set: how long its texts are, and in which languages."""

from __future__ import annotations

from array import array
from collections import Counter
from typing import Any

import numpy as np

from megatron_r1.data.curation.examples import Example
from megatron_r1.data.curation.words import words_of
from megatron_r1.rewards.language import language_of

_LOOKED_AT_CHARS = 2_000
"""Enough to tell a language by."""


class Statistics:
    """Counts words and languages, by data set, as examples pass by."""

    def __init__(self) -> None:
        self._question_words: dict[str, array[int]] = {}
        self._response_words: dict[str, array[int]] = {}
        self._languages: dict[str, Counter[str]] = {}

    def add(self, example: Example) -> None:
        name = example.dataset
        text = example.response or example.question
        questions = self._question_words.setdefault(name, array("l"))
        questions.append(len(words_of(example.question)))
        if example.response:
            responses = self._response_words.setdefault(name, array("l"))
            responses.append(len(words_of(example.response)))
        language = language_of(text[:_LOOKED_AT_CHARS])
        self._languages.setdefault(name, Counter())[language] += 1

    def to_json(self) -> dict[str, Any]:
        """Data set -> examples, lengths in words, languages by frequency."""
        return {
            name: {
                "examples": len(words),
                "question_words": _summary(words),
                "response_words": _summary(self._response_words.get(name, array("l"))),
                "languages": dict(sorted(languages.items(), key=lambda item: (-item[1], item[0]))),
            }
            for (name, words), languages in zip(
                sorted(self._question_words.items()),
                (self._languages[name] for name in sorted(self._languages)),
                strict=True,
            )
        }


def _summary(values: array[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {
        "mean": float(np.mean(values)),
        "median": float(np.median(values)),
        "p95": float(np.percentile(values, 95)),
        "max": float(max(values)),
    }
