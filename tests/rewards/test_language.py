"""Shares of words, by script and by identification."""

from __future__ import annotations

import csv
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest

from megatron_r1.rewards.language import count_words, language, language_of, words_of
from tests.rewards.builders import prompt_of, rollout_of


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Eight sentences in each of eight languages of one script, as one text a language."""
    with open(Path(__file__).with_name("sentences.tsv"), newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    by_language = defaultdict(list)
    for row in rows:
        by_language[row["language"]].append(row["sentence"])
    return {name: " ".join(sentences) for name, sentences in by_language.items()}


def share(text: str, target: str) -> float:
    own, other = count_words(text, target)
    return own / (own + len(other))


def judged(thought: str, target: str | None = "en", question: str = "?") -> float:
    prompt = replace(prompt_of(), question=question, language=target)
    return language(prompt, rollout_of(f"<think>{thought}</think><answer>3</answer>"))[0]


def test_languages_of_one_script_are_told_apart(texts):
    # 64 of 64 pairs; the reward of a thought in another language is 0.
    wrong = [
        (written, target)
        for written, text in texts.items()
        for target in texts
        if (share(text, target) > 0.95) is not (written == target)
        or (share(text, target) < 0.05) is (written == target)
    ]
    assert wrong == []


def test_texts_that_nothing_was_chosen_on_agree_with_a_person():
    """106 texts in many languages and mixtures, with code, formulas, numbers, names: for each the
    shares of some languages, by hand. Thoughts of two words are the hardest."""
    with open(Path(__file__).with_name("held_out_texts.tsv"), newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 106
    texts = [row["text"].replace("\\n", "\n") for row in rows]
    claims = [
        (text, *claim.split(":"))
        for row, text in zip(rows, texts, strict=True)
        for claim in row["shares"].split()
    ]
    assert len(claims) == 177
    disagreements = [
        (text, target)
        for text, target, by_hand in claims
        if judged(text, target) != pytest.approx(float(by_hand), abs=0.12)
    ]
    assert disagreements == [("Alles klar.", "en")]


def test_half_and_half_is_about_a_half(texts):
    assert share(texts["en"] + "\n" + texts["fr"], "en") == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(
    ("thought", "target", "value"),
    [
        ("we add both numbers", "en", 1.0),
        # 4 English words and 4 Chinese characters.
        ("we add both numbers 两个数字", "en", 0.5),
        ("we add both numbers 两个数字", "zh", 0.5),
        ("我们把两个数字相加", "zh", 1.0),
        ("складываем оба числа", "en", 0.0),
        ("두 수를 더한다", "ko", 1.0),
        # Characters that touch numbers, formulas and foreign names count, those do not.
        ("有3个苹果x1和2个梨 good luck", "zh", 7 / 9),
        ("计算f(x)得3.14", "zh", 1.0),
        ("DNA的序列 wrong word", "zh", 3 / 5),
        # Signs of repetition are characters, and Hindi's words keep their vowels.
        ("人々 for all", "ja", 2 / 4),
        ("मैं घर जा रहा हूँ for all", "hi", 5 / 7),
        # Kana are not Chinese: 3 of 7 are Han characters.
        ("数を足します。数", "zh", 3 / 7),
    ],
)
def test_scripts_count_by_word_or_character(thought, target, value):
    assert judged(thought, target) == pytest.approx(value)


@pytest.mark.parametrize(
    "thought",
    [
        "3 + 4 = 7, 7 * 2 = 14",
        r"$x = \frac{a}{b}$ \[y^2 \text{ für alle } y\]",
        "```python\nfor zahl in liste: drucke(zahl)\n```",
        "`der_name`",
        "x y z",
    ],
)
def test_code_formulas_numbers_and_symbols_count_for_nothing(thought):
    assert judged(thought) == 1.0
    assert judged(thought + " 我们相加", "zh") == 1.0


def test_names_and_abbreviations_do_not_count_against_chinese():
    assert judged("根据 Euler 公式和 DNA 以及 f(x) 我们得到", "zh") == 1.0
    assert judged("根据 theorem 我们得到", "zh") < 1.0


@pytest.mark.parametrize("written", [str.upper, str.title])
def test_capitals_hide_no_language(written, texts):
    """Capitals tell names where they are few: a text in capitals or title case counts as it is."""
    wrong = [
        (language, target)
        for language, text in texts.items()
        for target in ("en", "de")
        if (share(written(text), target) > 0.9) is not (language == target)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("thought", "value"),
    [
        ("we add", 1.0),
        ("So seven.", 1.0),
        ("Add them: 7", 1.0),
        ("ja sicher", 0.0),
        ("la suma es siete", 0.0),
        ("WIR ADDIEREN BEIDE ZAHLEN", 0.0),
        ("Wir Addieren Beide Zahlen Und Erhalten Die Summe", 0.0),
        ("WE USE DNA AND RNA HERE", 1.0),
        ("By Euler and Gauss the sum of both numbers is even", 1.0),
    ],
)
def test_short_and_capital_thoughts(thought, value):
    assert judged(thought) == value


def test_no_thought_is_worth_nothing_and_the_answer_is_not_read():
    assert judged("") == 0.0
    assert language(prompt_of(), rollout_of("<think>we add</think>答案是三"))[0] == 1.0


def test_the_target_is_the_questions_language_unless_the_prompt_says():
    assert judged("我们把两个数字相加", None, question="求两个数字的和") == 1.0
    assert judged("we add both numbers", None, question="求两个数字的和") == 0.0
    assert judged("我们把两个数字相加", "en", question="求两个数字的和") == 0.0


def test_the_language_of_a_question(texts):
    assert {name: language_of(text) for name, text in texts.items()} == {n: n for n in texts}
    assert [language_of(text) for text in ("", "3 + 4 =", "What is 3?")] == ["en"] * 3
    assert language_of("りんごはいくつ残っていますか") == "ja"


def test_a_lone_foreign_line_among_many_is_seen(texts):
    value, reason = language(
        replace(prompt_of(), language="en"),
        rollout_of(f"<think>{texts['en']} 等等，让我检查 {texts['en']}</think>"),
    )
    # 170 English words and 6 characters.
    assert 0.95 < value < 1.0
    assert "words are en, not '等 等 让 我 检'" in reason


def test_words_are_runs_of_letters():
    assert words_of("Don't stop: it's naïve_name 3rd x1") == ["Don't", "stop", "it's"]


@pytest.mark.parametrize("count", range(1, 40))
def test_every_word_is_counted_once_however_windows_end(count, texts):
    """Windows have 8 words; a short last one is looked at with the one before."""
    words = words_of(texts["en"])[:count]
    own, other = count_words(" ".join(words), "en")
    assert own + len(other) == len(words_of(" ".join(words)))
