"""Difficulty: how often a policy solves a prompt. Always and never teach nothing."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from megatron_r1.config.curation import DifficultyConfig
from megatron_r1.data.curation.examples import Example
from megatron_r1.data.records import read_records


class Difficulty:
    """Keeps prompts whose pass rate is within bounds, and writes the rate into their lineage.

    Raises:
        DataError: a file that is no rollouts/ file of a run.
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
    """Prompt id -> right samples and samples, out of a run's ``rollouts/step_*.jsonl``."""
    counts: dict[str, tuple[int, int]] = {}
    for line in (line for path in paths for line in read_records(path)):
        prompt_id, parts = line.record.get("prompt_id"), line.record.get("parts")
        if not isinstance(prompt_id, str) or not isinstance(parts, dict) or "accuracy" not in parts:
            raise line.fail("not a rollout: it needs prompt_id, and parts with accuracy")
        correct, samples = counts.get(prompt_id, (0, 0))
        counts[prompt_id] = correct + (parts["accuracy"] >= 1.0), samples + 1
    return counts
