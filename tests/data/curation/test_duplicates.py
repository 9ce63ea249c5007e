"""Exact and near duplicates against similarities that are counted by hand."""

from __future__ import annotations

import random

import pytest

from megatron_r1.config.curation import NearDuplicateConfig
from megatron_r1.data.curation.exact import ExactDuplicates
from megatron_r1.data.curation.near_duplicates import NearDuplicates, minhash, rows_per_band
from megatron_r1.data.curation.words import ngram_hashes
from tests.data.curation.builders import example


def test_the_first_of_equal_texts_stays():
    step = ExactDuplicates()
    assert step.check(example("How many  apples?", 3))[1] == ""
    assert step.check(example("HOW many apples?\n", 9))[1] == "same text as a.jsonl:3"
    assert step.check(example("How many pears?", 10))[1] == ""
    # Another response to the same question is another example.
    assert step.check(example("How many apples?", 11, response="4"))[1] == ""
    assert step.check(example("How many apples?", 12, response="5"))[1] == ""


def test_a_sign_makes_another_problem():
    exact, near = ExactDuplicates(), NearDuplicates(NearDuplicateConfig())
    for number, question in enumerate(["What is 3 + 5 ?", "What is 3 - 5 ?"], start=1):
        assert exact.check(example(question, number))[1] == ""
        assert near.check(example(question, number))[1] == ""


@pytest.mark.parametrize("shared", [0, 20, 60, 90, 100])
def test_a_signature_estimates_the_share_of_common_shingles(shared):
    # Two sets of 100 with `shared` in common: J = shared / (200 - shared), of 128 hashes.
    first = ngram_hashes([f"w{i}" for i in range(100)], 1)
    second = ngram_hashes([f"w{i}" for i in range(100 - shared, 200 - shared)], 1)
    estimate = float((minhash(first) == minhash(second)).mean())
    exact = shared / (200 - shared)
    # Three standard errors, sqrt(J (1 - J) / 128).
    assert abs(estimate - exact) <= 3 * (exact * (1 - exact) / 128) ** 0.5 + 1e-9


def test_bands_meet_nine_pairs_of_ten_at_the_threshold():
    # 1 - (1 - 0.8^8)^16 = 0.947, and 1 - (1 - 0.8^16)^8 = 0.204 would miss most.
    assert rows_per_band(0.8) == 8
    # 1 - (1 - 0.5^4)^32 = 0.873 is too few; 1 - (1 - 0.5^2)^64 is 1.
    assert rows_per_band(0.5) == 2


def test_reworded_texts_are_found_and_others_are_not():
    generator = random.Random(1)
    vocabulary = [f"word{i}" for i in range(500)]
    texts = [[generator.choice(vocabulary) for _ in range(120)] for _ in range(60)]
    step = NearDuplicates(NearDuplicateConfig())
    kept = [step.check(example(" ".join(text), n))[1] for n, text in enumerate(texts, start=1)]
    assert kept == [""] * 60
    # One word of 120 changed: 5 of 116 shingles differ, so J = 111 / 121 = 0.92.
    reworded = [[*text[:60], "changed", *text[61:]] for text in texts]
    reasons = [step.check(example(" ".join(text)))[1] for text in reworded]
    found = [reason.endswith(f"like a.jsonl:{n}") for n, reason in enumerate(reasons, start=1)]
    assert sum(found) >= 58
    # A third changed: 1 - (2/3)^5 of the shingles and more differ.
    other = [[w if i % 3 else "changed" for i, w in enumerate(text)] for text in texts]
    assert [step.check(example(" ".join(text)))[1] for text in other] == [""] * 60
