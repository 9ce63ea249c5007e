"""rollouts/step_000123.jsonl: what the policy wrote, what it earned, and why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from megatron_r1.telemetry.files import replace_file
from megatron_r1.types import ScoredGroup, spans


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
