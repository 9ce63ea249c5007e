"""The file that a stage trains on after it has sampled: kept samples, with their lineage."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from megatron_r1.checkpoint.hf_coverage import is_hf_directory
from megatron_r1.checkpoint.record import read_state, resolve_checkpoint
from megatron_r1.config.judge import JudgeConfig
from megatron_r1.data.lineage import Lineage
from megatron_r1.data.rejection import count_reasons, selection_table, split_heldout
from megatron_r1.errors import DataError
from megatron_r1.stages.collect import write_lines
from megatron_r1.telemetry.files import write_json
from megatron_r1.types import Prompt

Endpoint = TypeVar("Endpoint", bound=JudgeConfig)
TRAIN, HELDOUT, DROPPED = "train.jsonl", "heldout.jsonl", "dropped.jsonl"
MANIFEST = "manifest.json"
"""Written last: where it is, the others are whole."""


def example_of(
    sample: Mapping[str, Any],
    prompt: Prompt,
    *,
    model: str,
    model_version: int | None,
    seed: int,
    more: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A line to train on, by the schema of docs/data.md.

    Args:
        model_version: updates that it had seen; None where nobody knows, as of an endpoint.
        more: verdicts beside those of the rules.
    """
    lineage = Lineage(
        prompt_id=prompt.id,
        model=model,
        model_version=model_version,
        seed=seed,
        sample=sample["sample"],
        verdicts={**sample["parts"], **(more or {})},
    )
    return {
        "id": f"{prompt.id}/{sample['sample']}",
        "question": prompt.question,
        "response": sample["response"],
        "dataset": prompt.dataset,
        "lineage": lineage.to_record(),
    }


def version_of(model_dir: Path) -> int:
    """Updates that a model has seen in its own run; 0 for a Hugging Face model."""
    if is_hf_directory(model_dir):
        return 0
    return int(read_state(resolve_checkpoint(model_dir))["loop"]["step"])


def with_cache(config: Endpoint, path: Path) -> Endpoint:
    """The same endpoint, whose replies are kept: a run started again finds the same set."""
    if config.cache_path is not None:
        return config
    return dataclasses.replace(config, cache_path=str(path))


def dropped_row(example: Mapping[str, Any]) -> dict[str, Any]:
    """How dropped.jsonl names an example; one of a file is the only one of its line."""
    lineage = example["lineage"]
    return {"prompt_id": lineage["prompt_id"], "sample": lineage.get("sample", 0)}


def write_set(
    directory: Path,
    examples: Sequence[dict[str, Any]],
    dropped: Sequence[tuple[Mapping[str, Any], str]],
    *,
    heldout_frac: float,
    num_samples: int,
    more: Mapping[str, Any],
) -> str:
    """Write the set on the main rank. Returns a table of what was dropped and why.

    Args:
        more: figures for the manifest.
    Raises:
        DataError: nothing is left to train on.
    """
    reasons = count_reasons(dropped)
    table = selection_table(num_samples, reasons, len(examples))
    if not examples:
        raise DataError(
            f"no sample is left to train on:\n{table}\nLook into {directory}, sample more "
            "(stage.collect) or loosen the filters (reward.readability), and start over with "
            "run.overwrite=true"
        )
    train, heldout = split_heldout(examples, heldout_frac)
    write_lines(directory / TRAIN, train)
    write_lines(directory / HELDOUT, heldout)
    write_lines(
        directory / DROPPED,
        [
            {"prompt_id": s["prompt_id"], "sample": s["sample"], "reason": reason}
            for s, reason in dropped
        ],
    )
    counts = {"train": len(train), "heldout": len(heldout), "dropped": reasons, **more}
    write_json(directory / MANIFEST, counts)
    return table
