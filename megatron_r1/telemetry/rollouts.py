"""rollouts/step_000123.jsonl: what the policy wrote, what it earned, and why, of a few groups;
pass_counts/step_000123.jsonl: how often each prompt of the phase was solved.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_r1.telemetry.files import replace_file
from megatron_r1.types import ScoredGroup, spans

PASS_COUNTS = "pass_counts"
"""The folder of a run directory."""


@dataclass(frozen=True)
class PassCount:
    """What a group tells of its prompt's difficulty."""

    draw: int
    prompt_id: str
    samples: int
    correct: int
    """Samples whose answer is right."""


def write_rollouts(
    run_dir: Path, step: int, scored_groups: Sequence[ScoredGroup], limit: int
) -> Path | None:
    """Write every rollout of the first `limit` groups (-1: of all), one JSON object a line.

    Returns:
        The file, or None where there was nothing to write.
    """
    chosen = scored_groups if limit < 0 else scored_groups[:limit]
    if not chosen:
        return None
    path = run_dir / "rollouts" / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    # A policy can write half of a surrogate pair. The backslash form of it is valid JSON.
    with (
        replace_file(path) as draft,
        draft.open("w", encoding="utf-8", errors="backslashreplace") as file,
    ):
        for scored in chosen:
            for record in _records(scored):
                file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    return path


def pass_counts(scored_groups: Sequence[ScoredGroup]) -> list[PassCount]:
    """One for each group whose answers a rule graded."""
    counts = []
    for scored in scored_groups:
        graded = [
            reward.parts["accuracy"] for reward in scored.rewards if "accuracy" in reward.parts
        ]
        if graded:
            prompt, correct = scored.group.prompt, sum(part >= 1.0 for part in graded)
            counts.append(PassCount(prompt.draw, prompt.id, len(graded), correct))
    return counts


def write_pass_counts(
    run_dir: Path, step: int, shares: Sequence[Sequence[PassCount]]
) -> Path | None:
    """Write the counts of all groups of a phase, one JSON object a line, in the order of prompts.

    A phase that is made again after a kill writes its file again.

    Args:
        shares: of each replica.
    Returns:
        The file, or None where no group was graded.
    """
    counts = sorted((c for share in shares for c in share), key=lambda count: count.draw)
    if not counts:
        return None
    path = run_dir / PASS_COUNTS / f"step_{step:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    with replace_file(path) as draft, draft.open("w", encoding="ascii") as file:
        for c in counts:
            record = {"prompt_id": c.prompt_id, "samples": c.samples, "correct": c.correct}
            file.write(json.dumps(record) + "\n")
    return path


def _records(scored: ScoredGroup) -> Iterator[dict[str, Any]]:
    prompt = scored.group.prompt
    for rollout, reward in zip(scored.group.rollouts, scored.rewards, strict=True):
        yield {
            "prompt_id": prompt.id,
            "sample": rollout.sample,
            "question": prompt.question,
            "answer": prompt.answer,
            "response": rollout.text,
            "reward": reward.total,
            "parts": dict(reward.parts),
            "weights": dict(reward.weights),
            "reasons": dict(reward.reasons),
            "finish_reason": rollout.finish_reason.value,
            "tokens": len(rollout.token_ids),
            "weight_version": rollout.weight_version,
            "version_spans": [[span.version, span.start, span.stop] for span in spans(rollout)],
        }
