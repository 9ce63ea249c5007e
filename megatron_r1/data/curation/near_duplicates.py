"""Near duplicates: most shingles in common, found by MinHash and locality-sensitive hashing.

Broder, "On the resemblance and containment of documents" (1997): the chance that two sets have the
same minimum under a random hash is their Jaccard similarity, shared over all. A signature is the
minima under H hashes. Cut into bands of r of them, two signatures agree on a whole band with
probability 1 - (1 - s^r)^(H / r), so only texts that share a band are ever compared.
"""

from __future__ import annotations

import numpy as np

from megatron_r1.config.curation import NearDuplicateConfig
from megatron_r1.data.curation.examples import Example
from megatron_r1.data.curation.words import mixed, ngram_hashes, words_of

NUM_HASHES = 128
"""H. The standard error of a similarity s is sqrt(s (1 - s) / H): 0.035 at 0.8."""
_MIN_RECALL = 0.9
_CHUNK = 4_096
_SEEDS_H = mixed(np.arange(1, NUM_HASHES + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))


class NearDuplicates:
    """Keeps the first of texts alike. About 4 kB of memory for each example kept."""

    name = "near duplicate"

    def __init__(self, config: NearDuplicateConfig) -> None:
        self._config = config
        self._rows = rows_per_band(config.threshold)
        self._signatures: list[np.ndarray] = []
        self._places: list[str] = []
        self._buckets: dict[int, list[int]] = {}

    def check(self, example: Example) -> tuple[Example, str]:
        words = words_of(example.text, signs=True)
        if not words:
            return example, ""
        signature_H = minhash(ngram_hashes(words, self._config.shingle_words))
        keys = self._band_keys(signature_H)
        met = sorted({index for key in keys for index in self._buckets.get(key, ())})
        if met:
            similarities = [float((self._signatures[i] == signature_H).mean()) for i in met]
            best = int(np.argmax(similarities))
            if similarities[best] >= self._config.threshold:
                return example, f"{similarities[best]:.2f} like {self._places[met[best]]}"
        for key in keys:
            self._buckets.setdefault(key, []).append(len(self._signatures))
        self._signatures.append(signature_H)
        self._places.append(example.where)
        return example, ""

    def _band_keys(self, signature_H: np.ndarray) -> list[int]:
        bands = signature_H.astype(np.uint64).reshape(-1, self._rows)
        keys = np.arange(len(bands), dtype=np.uint64)
        for column in bands.T:
            keys = mixed(keys ^ mixed(column + np.uint64(1)))
        return keys.tolist()


def minhash(hashes_S: np.ndarray) -> np.ndarray:
    """Signature of a set of shingle hashes, [H], uint32."""
    distinct_S = np.unique(hashes_S)
    minima_H = np.full(NUM_HASHES, np.iinfo(np.uint64).max, dtype=np.uint64)
    for start in range(0, len(distinct_S), _CHUNK):
        keyed_SH = mixed(distinct_S[start : start + _CHUNK, None] ^ _SEEDS_H)
        minima_H = np.minimum(minima_H, keyed_SH.min(axis=0))
    return (minima_H >> np.uint64(32)).astype(np.uint32)


def rows_per_band(threshold: float) -> int:
    """The longest bands, so the fewest comparisons, that still meet nine of ten pairs at the
    threshold."""
    rows = NUM_HASHES
    while rows > 1 and 1 - (1 - threshold**rows) ** (NUM_HASHES // rows) < _MIN_RECALL:
        rows //= 2
    return rows
