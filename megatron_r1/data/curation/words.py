"""Words and n-grams of a text, the same however it was typeset."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from functools import lru_cache

import numpy as np

# Scripts without spaces have no words that a rule could cut out: each character is one.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\u0e00-\u0e7f"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_WORD_OR_SIGN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


def words_of(text: str, *, signs: bool = False) -> list[str]:
    """Words and numbers in lower case; with `signs`, each sign too, as in ``3 + 4``.

    >>> words_of("The sum: 3+4."), words_of("3+4.", signs=True)
    (['the', 'sum', '3', '4'], ['3', '+', '4', '.'])
    """
    pattern = _WORD_OR_SIGN if signs else _WORD
    return pattern.findall(unicodedata.normalize("NFKC", text).casefold())


def ngram_hashes(words: list[str], n: int) -> np.ndarray:
    """uint64 hash of each run of n words, in order; of the whole text where it is shorter.

    64 bits: a set of a million n-grams and a corpus of 10^9 share one by chance 5e-5 times.
    """
    if not words:
        return np.empty(0, dtype=np.uint64)
    hashes_W = np.fromiter(map(_hash, words), dtype=np.uint64, count=len(words))
    n = min(n, len(words))
    with np.errstate(over="ignore"):
        total = np.zeros(len(words) - n + 1, dtype=np.uint64)
        for offset in range(n):  # a polynomial in an odd number: order counts
            total = total * _MULTIPLIER + hashes_W[offset : offset + len(total)]
        return mixed(total + np.uint64(n))


def mixed(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser: every bit of the result depends on every bit of the value."""
    with np.errstate(over="ignore"):
        z = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


@lru_cache(maxsize=1 << 18)
def _hash(word: str) -> int:
    return int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "little")
