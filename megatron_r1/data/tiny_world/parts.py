"""Which part of the world a question belongs to: pre-training, training or measurement."""

from __future__ import annotations

import hashlib
from enum import Enum

CORPUS_FRAC, HELDOUT_FRAC = 0.4, 0.2


class Part(Enum):
    """Disjoint by content: a sum or a request is in one part, in both languages."""

    corpus = "corpus"
    train = "train"
    heldout = "heldout"


def part_of(content: str) -> Part:
    """By a hash of what is asked, which does not depend on the seed or on the wording."""
    digest = hashlib.sha256(f"tiny world/{content}".encode()).digest()
    share = int.from_bytes(digest[:8], "big") / 2**64
    if share < CORPUS_FRAC:
        return Part.corpus
    return Part.heldout if share < CORPUS_FRAC + HELDOUT_FRAC else Part.train
