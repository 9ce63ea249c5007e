"""Difficulty: how often a policy solves a prompt. Always and never teach nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_r1.config.curation import DifficultyConfig
from megatron_r1.data.curation.examples import Example
from megatron_r1.data.records import read_records
from megatron_r1.telemetry.rollouts import PASS_COUNTS


class Difficulty:
    """Keeps prompts whose pass rate is within bounds, and writes the rate into their lineage.

    Raises:
        DataError: a file that is of neither folder of a run.
    """

    name = "difficulty"

    def __init__(self, config: DifficultyConfig) -> None:
        self._config = config
        self._counts = count_rollouts(config.rollouts)

    def check(self, example: Example) -> tuple[Example, str]:
        config = self._config
        correct, samples = self._counts.get(example.lineage.prompt_id, (0, 0))
        if samples < config.min_samples:
            return example, f"sampled {samples} times, fewer than {config.min_samples}"
        rate = correct / samples
        lineage = example.lineage.with_verdict("pass_rate", rate)
        example = dataclasses.replace(example, lineage=lineage)
        if config.min_pass_rate <= rate <= config.max_pass_rate:
            return example, ""
        kind = "too hard" if rate < config.min_pass_rate else "too easy"
        return example, f"{kind}: {correct} of {samples} samples are right"


def count_rollouts(paths: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Prompt id -> right samples and samples, out of a run's ``pass_counts/step_*.jsonl``.

    ``rollouts/step_*.jsonl`` do as well. They hold the texts of a few groups
    (`telemetry.rollout_samples`), so counts stand for the texts of a phase where both are there.
    """
    counts: dict[str, tuple[int, int]] = {}
    for line in (line for path in _best_of(paths) for line in read_records(path)):
        try:
            prompt_id, more_correct, more_samples = _pass_count(line.record)
        except ValueError as error:
            raise line.fail(f"not a rollout: {error}") from error
        correct, samples = counts.get(prompt_id, (0, 0))
        counts[prompt_id] = correct + more_correct, samples + more_samples
    return counts


def _best_of(paths: Sequence[str]) -> list[Path]:
    """Where the counts of a phase are there, these once, however the phase is named."""
    best: list[Path] = []
    for path in map(Path, paths):
        counts = path.parent.parent / PASS_COUNTS / path.name
        if not counts.is_file():
            best.append(path)
        elif counts not in best:
            best.append(counts)
    return best


def _pass_count(record: Mapping[str, Any]) -> tuple[str, int, int]:
    """A prompt's id, right samples and samples, by one line."""
    prompt_id, parts = record.get("prompt_id"), record.get("parts")
    if not isinstance(prompt_id, str):
        raise ValueError("it needs prompt_id")
    if isinstance(parts, dict) and "accuracy" in parts:
        return prompt_id, int(parts["accuracy"] >= 1.0), 1
    correct, samples = record.get("correct"), record.get("samples")
    if type(correct) is type(samples) is int and 0 <= correct <= samples and samples > 0:
        return prompt_id, correct, samples
    raise ValueError("it needs parts with accuracy, or samples and correct, how many of them")
