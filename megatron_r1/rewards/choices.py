"""Multiple choice: which letters an answer names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from megatron_r1.rewards.normalise import normalise

_LETTERS = re.compile(r"[A-Z](?:\s*(?:,|;|and|&)?\s*[A-Z])*")
_LEAD = re.compile(r"(?:the )?(?:correct )?(?:option|choice|answer)s?(?: is| are|:)?\s*", re.I)
_LETTER_THEN_TEXT = re.compile(r"\(?([A-Za-z])\s*[).:\]]\s*(.*)", re.DOTALL)


def is_choice(gold: str, prediction: str, choices: Sequence[str] = ()) -> bool:
    """Whether an answer names exactly the right options, in any order.

    ``B``, ``(b)``, ``B.``, ``B) 42 km`` and ``Option B`` are the same; so is the option's own text
    where `choices` lists the options, from A on. Two letters answer a question with two right
    options, and none with one.

    Raises:
        ValueError: the reference names no letter.
    """
    right = _letters(gold, ())
    if not right:
        raise ValueError(f"the reference answer {gold!r} names no option. Write a letter, e.g. B")
    return _letters(prediction, choices) == right


def letters_of(answer: str, choices: Sequence[str] = ()) -> str:
    """The options that an answer names, as ``AC``; nothing where it names none."""
    return "".join(sorted(_letters(answer, choices)))


def _letters(answer: str, choices: Sequence[str]) -> frozenset[str]:
    text = normalise(answer)
    for index, choice in enumerate(choices):
        if text.casefold() == normalise(choice).casefold():
            return frozenset(chr(ord("A") + index))
    text = _LEAD.sub("", text, count=1) if _LEAD.match(text) else text
    found = _LETTER_THEN_TEXT.fullmatch(text)
    if found:
        # `B) 42` names B; where the options are known, their text must not say another.
        letter, rest = found.group(1).upper(), normalise(found.group(2))
        index = ord(letter) - ord("A")
        others = [normalise(choice) for place, choice in enumerate(choices) if place != index]
        return frozenset() if rest and rest in others else frozenset(letter)
    text = text.strip("()[] .")
    if len(text) == 1 and text.isascii() and text.isalpha():
        return frozenset(text.upper())
    bare = re.sub(r"[()]", "", text)
    if _LETTERS.fullmatch(bare):
        return frozenset(re.findall(r"[A-Z]", bare))
    return frozenset()
