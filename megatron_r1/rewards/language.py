"""Language consistency: the share of target-language words in the reasoning.

DeepSeek-R1 (arXiv:2501.12948v2) section 3.2.1, Eq. 7: target-language words over all words of the
chain of thought. The paper does not say how words are found or told apart. Here a word is a run of
letters; of scripts written without spaces, each character counts as one. Its script decides where
that is enough (English or Chinese); words whose script the target shares with other languages
(English or French) are identified in windows of 8 by py3langid. Code, formulas, numbers, single
letters, abbreviations and names are not counted; in a sentence most of whose words have capitals
these tell no names, and all of it counts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from megatron_r1.data.languages import LANGUAGES, SCRIPTS
from megatron_r1.rewards.reasoning import reasoning_of
from megatron_r1.types import Prompt, Rollout

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

WINDOW_WORDS = 8
"""At 8 words py3langid names 64 of 64 windows of `tests/rewards/sentences.tsv` rightly, at 2 words
0.89 of them."""
_MIN_WINDOW_WORDS = 4
_SURE = 0.5
"""Probability from which fewer words are another language's: at it py3langid is right about 0.99 of
the pairs of words in that file, and wrong about no English one. On texts that nothing was chosen
on, `tests/rewards/held_out_texts.tsv`, 176 of 177 shares are within 0.12 of a person's."""
_MANY_CAPITALS = 0.6
"""Share of a sentence's words behind its first; German prose with its nouns has 0.35."""
_UNSPACED = ("CJK", "HIRAGANA", "KATAKANA", "THAI")
_CHARACTER = (
    r"\u0e01-\u0e30\u0e32\u0e33\u0e40-\u0e46\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa"
    r"\u30fc-\u30ff\u31f0-\u31ff\u3400-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff"
)
"""Letters of these scripts. They touch the numbers and foreign words that stand among them."""
_MARK = r"\u0300-\u036f\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
"""Signs that `\\w` leaves out: combining ones, as Hindi writes vowels."""
_NOT_PROSE = re.compile(
    r"```.*?(?:```|\Z)|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|\\\[.*?\\\]|\\\(.*?\\\)"
    r"|\\begin\{(\w+\*?)\}.*?\\end\{\1\}|https?://\S+|\\[a-zA-Z]+(?:\{[^{}]*\})*|<[^<>\n]{1,40}>",
    re.DOTALL,
)
_LETTERS = rf"[^\W\d_{_CHARACTER}](?:[^\W\d_{_CHARACTER}]|[{_MARK}])*"
_RUN = re.compile(rf"[{_CHARACTER}]|{_LETTERS}(?:['’]{_LETTERS})*")
_SIGN = rf"[^\W{_CHARACTER}]"
_IDENTIFIER = re.compile(rf"{_SIGN}*[\d_]{_SIGN}*|{_SIGN}+\(|{_SIGN}+(?:\.{_SIGN}+)+")
_SENTENCE = re.compile(r"[^.!?。！？\n]*(?:[.!?。！？\n]+|\Z)")
_SENTENCE_END = re.compile(r"[.!?:;。！？\n]\s*[\"'(\[]*\s*$|^\s*$")


def language(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """From 0 to 1. A thought of formulas alone is worth 1, no thought at all 0.

    The target is the prompt's `language`, or the language of its question.
    """
    target = prompt.language or language_of(prompt.question)
    thought = reasoning_of(rollout.text)
    if not thought.strip():
        return 0.0, "no reasoning"
    own, other = count_words(thought, target)
    total = own + len(other)
    if total == 0:
        return 1.0, "no words to judge"
    examples = f", not {' '.join(other[:5])!r}" if other else ""
    return own / total, f"{own} of {total} words are {target}{examples}"


def count_words(text: str, target: str) -> tuple[int, list[str]]:
    """How many words are of the target language, and which are not."""
    scripts = SCRIPTS[target]
    own, other, shared = 0, [], []
    for word in words_of(text):
        script = _script_of(word)
        if script not in scripts:
            other.append(word)
        elif len(_sharing(script)) > 1 and script not in _UNSPACED:
            shared.append(word)
        else:
            own += 1
    for window in _windows(shared):
        found, probability = _identify(" ".join(window).lower(), target)
        is_unsure = len(window) < _MIN_WINDOW_WORDS and probability < _SURE
        if found == target or is_unsure:
            own += len(window)
        else:
            other += window
    return own, other


def words_of(text: str) -> list[str]:
    """Words of prose, in order: without code, formulas, numbers, abbreviations and names."""
    text = unicodedata.normalize("NFC", _NOT_PROSE.sub("\n", text))
    text = _IDENTIFIER.sub(" ", text)
    words = []
    for sentence in _SENTENCE.findall(text):
        runs = list(_RUN.finditer(sentence))
        has_names = not _is_capitalised(runs)
        for found in runs:
            run, before = found.group(), sentence[max(0, found.start() - 8) : found.start()]
            if _is_character(run) or (len(run) > 1 and not (has_names and _is_name(run, before))):
                words.append(run)
    return words


def language_of(text: str) -> str:
    """The language of a question; English where nothing tells."""
    words = words_of(text)
    counts: dict[str, int] = {}
    for word in words:
        counts[_script_of(word)] = counts.get(_script_of(word), 0) + 1
    if counts.get("HIRAGANA", 0) + counts.get("KATAKANA", 0) > 0.1 * len(words):
        return "ja"
    script = max(counts, key=lambda name: counts[name], default="LATIN")
    if script == "CJK":
        return "zh"
    candidates = _sharing(script)
    if not candidates:
        return "en"
    if len(candidates) == 1:
        return candidates[0]
    if len(words) < _MIN_WINDOW_WORDS and "en" in candidates:
        return "en"
    return _identifier(candidates).classify(" ".join(words).lower())[0]


def _is_capitalised(runs: Sequence[re.Match[str]]) -> bool:
    """Whether a sentence is in capitals or in title case: TWO WORDS, or most of more."""
    words = [run.group() for run in runs if len(run.group()) > 1 or _is_character(run.group())]
    if len(words) < _MIN_WINDOW_WORDS:
        return len(words) > 1 and all(word.isupper() for word in words)
    return sum(word[0].isupper() for word in words[1:]) > _MANY_CAPITALS * (len(words) - 1)


def _is_name(run: str, before: str) -> bool:
    """An abbreviation (DNA), or a capital inside a sentence (Euler).

    German writes nouns so; they are not counted either way. A name that starts a sentence counts.
    """
    if run.isupper() and len(run) <= 5:
        return True
    return run[0].isupper() and not _SENTENCE_END.search(before)


def _windows(words: Sequence[str]) -> list[list[str]]:
    """Slices of 8; a short last one joins the one before."""
    slices = [list(words[i : i + WINDOW_WORDS]) for i in range(0, len(words), WINDOW_WORDS)]
    if len(slices) > 1 and len(slices[-1]) < _MIN_WINDOW_WORDS:
        last = slices.pop()
        slices[-1] += last
    return slices


def _identify(text: str, target: str) -> tuple[str, float]:
    """The likeliest of the languages that share the target's script, and its probability."""
    return _identifier(_sharing(SCRIPTS[target][0])).classify(text)


def _is_character(run: str) -> bool:
    """One of a script that is written without spaces."""
    return _script_of(run) in _UNSPACED


@lru_cache(maxsize=1 << 14)
def _script_of(word: str) -> str:
    """As Unicode names the first letter: LATIN SMALL LETTER A, CJK UNIFIED IDEOGRAPH-6570."""
    first, *others = re.split("[ -]", unicodedata.name(word[0], "OTHER"))
    if first == "IDEOGRAPHIC":  # signs of repetition and zero
        return "CJK"
    return others[0] if first in ("FULLWIDTH", "HALFWIDTH") else first


@lru_cache(maxsize=64)
def _sharing(script: str) -> tuple[str, ...]:
    return tuple(language for language in LANGUAGES if script in SCRIPTS[language])


@lru_cache(maxsize=8)
def _identifier(languages: tuple[str, ...]) -> LanguageIdentifier:
    """py3langid, told which languages there are: 0.8 s and 90 MB for the first."""
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages(list(languages))
    return identifier
