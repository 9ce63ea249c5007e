"""Readability: whether a person would like to read a response (arXiv:2501.12948v2 B.3.2, B.3.3).

What DeepSeek-R1's cold start and rejection sampling keep: a thought and a summary behind it, in one
language, without repetition, long paragraphs or blocks of code. The paper names these filters and
no thresholds; ours are in `config/reward.py`.
"""

from __future__ import annotations

import re

from megatron_r1.config.reward import ReadabilityConfig
from megatron_r1.data.languages import SCRIPTS
from megatron_r1.data.templates import ANSWER, END_ANSWER, END_THINK, THINK
from megatron_r1.rewards.language import count_words, language_of
from megatron_r1.types import FinishReason, Prompt, Rollout

_DEFAULT = ReadabilityConfig()
_UNIT = re.compile(r"\w+|[^\w\s]")


def readable(
    prompt: Prompt, rollout: Rollout, *, config: ReadabilityConfig = _DEFAULT
) -> tuple[float, str]:
    """1 or 0, with the first fault as the reason."""
    fault = fault_of(prompt, rollout, config)
    return (0.0, fault) if fault else (1.0, "a thought and a summary")


def fault_of(prompt: Prompt, rollout: Rollout, config: ReadabilityConfig) -> str:
    """What is wrong with a response's form; empty: nothing."""
    if rollout.finish_reason is FinishReason.length:
        return "form: truncated"
    text = rollout.text
    if text.count(THINK) != 1 or text.count(END_THINK) != 1 or not text.lstrip().startswith(THINK):
        return "form: not one thought at the beginning"
    thought, _, rest = text.partition(END_THINK)
    thought = thought.replace(THINK, "").strip()
    summary = rest.replace(ANSWER, "").replace(END_ANSWER, "").strip()
    if not thought or not summary:
        return "form: no thought" if not thought else "form: no summary"
    words = len(_units_of(summary))
    if words < config.min_summary_words:
        return f"form: a summary of {words} words"
    return (
        _mixed(prompt, f"{thought}\n{summary}", config)
        or _repeated(text, config)
        or _long(thought, config)
    )


def _mixed(prompt: Prompt, text: str, config: ReadabilityConfig) -> str:
    target = prompt.language or language_of(prompt.question)
    own, other = count_words(text, target if target in SCRIPTS else "en")
    total = own + len(other)
    share = own / total if total else 1.0
    return f"mixed languages: {share:.2f} of it is {target}" if share < config.min_language else ""


def _repeated(text: str, config: ReadabilityConfig) -> str:
    units, size = _units_of(text), config.ngram_words
    total = len(units) - size + 1
    if total < 1:
        return ""
    repeated = total - len({tuple(units[start : start + size]) for start in range(total)})
    if repeated <= config.max_repetition * total:
        return ""
    return f"repetition: {repeated} of {total} {size}-grams"


def _long(thought: str, config: ReadabilityConfig) -> str:
    if "```" in thought and not config.code_blocks:
        return "code block in the thought"
    longest = max(len(_units_of(paragraph)) for paragraph in re.split(r"\n\s*\n", thought))
    return f"paragraph of {longest} words" if longest > config.max_paragraph_words else ""


def _units_of(text: str) -> list[str]:
    """Words, and the signs between them."""
    return _UNIT.findall(text)
