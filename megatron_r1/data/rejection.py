"""Rejection sampling: which samples are learned from, and why others are not.

A sample is a line of `stages/collect.py`: its prompt, its text, and what rules said of it. All of
this is a function of the lines alone, so that a run started again makes the same files.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_r1.data.json_lines import holds_half_a_pair
from megatron_r1.rewards.not_graded import not_graded
from megatron_r1.telemetry.table import render_table

NEEDED = ("accuracy", "judged", "format", "readable")
"""Parts that must be 1 where a sample has them."""
NOTHING_WRITTEN = "the teacher wrote nothing"
"""A sample's ``fault`` where a teacher refused, was cut off, or did not answer."""


@dataclass(frozen=True)
class Selection:
    """What came of samples."""

    kept: list[dict[str, Any]]
    dropped: list[tuple[dict[str, Any], str]]
    """Sample and reason."""


def fault_of(sample: Mapping[str, Any]) -> str:
    """Why a sample is not learned from; empty: it is."""
    if holds_half_a_pair(sample["response"]):
        return "half a surrogate pair"
    if sample.get("fault"):
        return str(sample["fault"])
    parts, reasons = sample["parts"], sample["reasons"]
    kinds = {not_graded(reason) for reason in reasons.values()}
    if len(kinds) == 1 and "" not in kinds:
        return f"not graded: {kinds.pop()}"
    for name in NEEDED:
        if parts.get(name, 1.0) < 1.0:
            # A reason's beginning is its kind; what follows differs from sample to sample.
            kind = reasons.get(name, "").partition(":")[0] if name == "readable" else ""
            return f"{name}: {kind}" if kind else name
    if "accuracy" not in parts and "judged" not in parts:
        return "no verdict"
    return ""


def select(samples: Iterable[Mapping[str, Any]], *, keep_per_prompt: int = 0) -> Selection:
    """The samples without a fault; of each prompt the first `keep_per_prompt`, 0: all, and none
    twice."""
    kept: list[dict[str, Any]] = []
    dropped: list[tuple[dict[str, Any], str]] = []
    seen: dict[int, set[str]] = {}
    for sample in map(dict, samples):
        texts = seen.setdefault(sample["draw"], set())
        fault = fault_of(sample)
        if not fault and sample["response"] in texts:
            fault = "the same text again"
        if not fault and keep_per_prompt and len(texts) >= keep_per_prompt:
            fault = "enough of this prompt"
        if fault:
            dropped.append((sample, fault))
        else:
            texts.add(sample["response"])
            kept.append(sample)
    return Selection(kept=kept, dropped=dropped)


@dataclass(frozen=True)
class Trimmed:
    """What a ratio leaves of two kinds of examples."""

    reasoning: list[dict[str, Any]]
    general: list[dict[str, Any]]
    dropped: list[tuple[dict[str, Any], str]]
    """Example and reason."""


def trim_to_ratio(
    reasoning: Sequence[dict[str, Any]], general: Sequence[dict[str, Any]], ratio: float
) -> Trimmed:
    """As many of both as `ratio` samples of reasoning for each general one leave; 0 keeps all.

    Which ones go is decided by a hash of each, and the rest keep their order.
    """
    if ratio == 0 or not reasoning or not general:
        return Trimmed(list(reasoning), list(general), [])
    num_general = min(len(general), max(1, round(len(reasoning) / ratio)))
    num_reasoning = min(len(reasoning), max(1, round(num_general * ratio)))
    kept_reasoning, other_reasoning = _first_by_hash(reasoning, num_reasoning)
    kept_general, other_general = _first_by_hash(general, num_general)
    dropped = [(example, "too many of reasoning") for example in other_reasoning]
    dropped += [(example, "too many general ones") for example in other_general]
    return Trimmed(kept_reasoning, kept_general, dropped)


def split_heldout(
    examples: Sequence[dict[str, Any]], frac: float
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(training, held out): about `frac` of the questions, with all of their examples."""
    train = [e for e in examples if _unit_hash(e["question"]) >= frac]
    heldout = [e for e in examples if _unit_hash(e["question"]) < frac]
    return (train, heldout) if train else (heldout, [])


def selection_table(num_samples: int, dropped: Mapping[str, int], num_kept: int) -> str:
    """What became of samples, by reason."""
    rows = [["samples", str(num_samples)]]
    rows += [[f"dropped: {reason}", str(count)] for reason, count in dropped.items()]
    return render_table(["", "count"], [*rows, ["kept", str(num_kept)]])


def count_reasons(dropped: Iterable[tuple[Any, str]]) -> dict[str, int]:
    """How often each reason occurs, the most frequent first."""
    return dict(Counter(reason for _, reason in dropped).most_common())


def _first_by_hash(
    items: Sequence[dict[str, Any]], count: int
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(the `count` items of the lowest hash, the others), both in their order."""
    keys, before = [], Counter()
    for item in items:
        text = f"{item['question']}\n{item['response']}"
        # Of samples that stand here several times, a few go, and not all of one.
        keys.append(_unit_hash(f"{text}\n{before[text]}" if before[text] else text))
        before[text] += 1
    chosen = set(sorted(range(len(items)), key=lambda index: (keys[index], index))[:count])
    return (
        [item for index, item in enumerate(items) if index in chosen],
        [item for index, item in enumerate(items) if index not in chosen],
    )


def _unit_hash(text: str) -> float:
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).digest()
    return int.from_bytes(digest[:8], "big") / 2**64
