"""GPQA and MMLU-Pro: a question and its options."""

from __future__ import annotations

from megatron_r1.data.problems import Problem
from megatron_r1.evaluation.benchmarks.fields import Asked, choice_problem, shuffled


def gpqa(asked: Asked) -> Problem:
    """The file has the right answer first; the options' order is drawn from seed and problem."""
    right = asked.text("Correct Answer")
    wrong = [asked.text(f"Incorrect Answer {number}") for number in (1, 2, 3)]
    own_id = str(asked.optional("Record ID") or asked.default_id)
    choices = shuffled([right, *wrong], asked.seed, own_id)
    return choice_problem(asked, own_id, asked.text("Question"), choices, choices.index(right))


def mmlu_pro(asked: Asked) -> Problem:
    """Up to ten options in the order of the file."""
    options = asked.value("options")
    if not isinstance(options, list) or not all(isinstance(option, str) for option in options):
        raise ValueError("no mmlu_pro record: its options are no list of strings")
    letter = asked.text("answer")
    right = ord(letter) - ord("A") if len(letter) == 1 else -1
    if not 0 <= right < len(options):
        raise ValueError(f"no mmlu_pro record: answer {letter!r} of {len(options)} options")
    own_id = str(asked.optional("question_id") or asked.default_id)
    return choice_problem(asked, own_id, asked.text("question"), options, right)
