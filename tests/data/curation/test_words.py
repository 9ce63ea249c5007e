"""Words and n-grams, however a text was typeset."""

from __future__ import annotations

from megatron_r1.data.curation.words import ngram_hashes, words_of


def test_words_do_not_depend_on_case_width_or_signs():
    plain = ["find", "x", "2", "if", "x", "1", "3"]
    assert words_of("Find x_2: if x+1 = 3.".replace("_", " ")) == plain
    assert words_of("FIND\n  ｘ ２ — if (x − 1)  = 3") == plain


def test_signs_are_words_where_they_are_asked_for():
    assert words_of("3+4", signs=True) != words_of("3-4", signs=True)
    assert words_of("3+4") == words_of("3-4") == ["3", "4"]


def test_characters_of_scripts_without_spaces_are_words():
    assert words_of("求x的值。") == ["求", "x", "的", "值"]


def test_ngrams_are_runs_in_order():
    words = "a b c d e".split()
    hashes = ngram_hashes(words, 2)
    assert len(set(hashes.tolist())) == 4  # ab bc cd de
    assert ngram_hashes(["b", "c"], 2)[0] == hashes[1]
    assert ngram_hashes(["c", "b"], 2)[0] not in hashes
    assert ngram_hashes(["a", "a", "a"], 2).tolist() == [ngram_hashes(["a", "a"], 2)[0]] * 2


def test_a_short_text_is_one_ngram_and_no_text_is_none():
    assert len(ngram_hashes(["a", "b"], 5)) == 1
    assert ngram_hashes(["a", "b"], 5) == ngram_hashes(["a", "b"], 2)
    assert ngram_hashes([], 5).size == 0
