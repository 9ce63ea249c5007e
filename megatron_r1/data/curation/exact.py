"""Exact duplicates: the same text, but for case, width and white space."""

from __future__ import annotations

import hashlib
import unicodedata

from megatron_r1.data.curation.examples import Example


class ExactDuplicates:
    """Keeps the first of each text. A digest and a place are held in memory for each."""

    name = "exact duplicate"

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}

    def check(self, example: Example) -> tuple[Example, str]:
        text = " ".join(unicodedata.normalize("NFKC", example.text).casefold().split())
        key = hashlib.blake2b(text.encode(), digest_size=16).digest()
        if key in self._first:
            return example, f"same text as {self._first[key]}"
        self._first[key] = example.where
        return example, ""
