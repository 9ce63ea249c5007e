"""Decontamination: no n words in a row from an evaluation question or solution.

DeepSeek-R1 (arXiv:2501.12948v2) appendix D.1 drops any text with a matching 10-gram. It does not
say what a word is; ours are in `words.py`, and without signs, unless the configuration counts them,
typesetting hides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from megatron_r1.config.curation import DecontaminationConfig
from megatron_r1.data.curation.examples import Example
from megatron_r1.data.curation.words import ngram_hashes, words_of
from megatron_r1.data.records import read_records


class Contamination:
    """Drops what shares n words in a row with any text of an evaluation record.

    A text of fewer words than n, such as ``What is 2 + 2?``, matches a question that has the same
    words and no others.

    Raises:
        DataError: an evaluation file that cannot be read, or holds no text.
    """

    name = "contaminated"

    def __init__(self, config: DecontaminationConfig) -> None:
        self._n, self._signs = config.ngram_words, config.signs
        self._places: list[str] = []
        hashes, items = [], []
        for line in (line for path in config.files for line in read_records(path)):
            item = len(self._places)
            self._places.append(line.where)
            texts = [words_of(text, signs=self._signs) for text in _texts(line.record)]
            found = [ngram_hashes(words, self._n) for words in texts]
            distinct = np.unique(np.concatenate([np.empty(0, np.uint64), *found]))
            if not distinct.size:
                raise line.fail("holds no text to look for")
            hashes.append(distinct)
            items.append(np.full(len(distinct), item, dtype=np.int64))
        all_hashes, all_items = np.concatenate(hashes), np.concatenate(items)
        self._hashes, first, counts = np.unique(all_hashes, return_index=True, return_counts=True)
        self._items = all_items[first]
        if config.max_items:
            # A template's words stand in many items, and say nothing of any one problem.
            told = counts <= config.max_items
            self._hashes, self._items = self._hashes[told], self._items[told]

    def check(self, example: Example) -> tuple[Example, str]:
        for text in (example.question, example.response):
            words = words_of(text, signs=self._signs)
            if len(words) < self._n and text is not example.question:
                continue
            found = self._first_match(ngram_hashes(words, self._n))
            if found is not None:
                position, place = found
                shared = " ".join(words[position : position + self._n])
                return example, f"shares {shared!r} with {place}"
        return example, ""

    def _first_match(self, hashes: np.ndarray) -> tuple[int, str] | None:
        if not hashes.size or not self._hashes.size:
            return None
        places = np.searchsorted(self._hashes, hashes).clip(max=len(self._hashes) - 1)
        matches = np.flatnonzero(self._hashes[places] == hashes)
        if not matches.size:
            return None
        position = int(matches[0])
        return position, self._places[self._items[places[position]]]


def _texts(value: Any) -> Iterator[str]:
    """Every string of a record, however deep."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _texts(item)
    elif isinstance(value, Sequence):
        for item in value:
            yield from _texts(item)
