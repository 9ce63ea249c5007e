"""What two runs must have in common to be the same: weights, Adam's state, metrics."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch

CLOCK = re.compile("^time/|per_s|seconds")


def weights(run: Path, stage: str) -> dict[str, torch.Tensor]:
    from megatron.core import dist_checkpointing

    from megatron_r1.checkpoint.record import resolve_checkpoint

    path = resolve_checkpoint(run / stage) / "policy"
    return dict(flatten("", dist_checkpointing.load_plain_tensors(str(path))))


def flatten(prefix: str, value: object) -> Iterator[tuple[str, torch.Tensor]]:
    """Weights, Adam's moments and step counts, by name."""
    if isinstance(value, torch.Tensor):
        yield prefix, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from flatten(f"{prefix}/{key}", item)


def metrics(run: Path, stage: str) -> list[dict]:
    """Every step's, without what a clock put into them."""
    lines = (run / stage / "metrics.jsonl").read_text().splitlines()
    return [steady(json.loads(line)) for line in lines]


def steady(row: dict) -> dict:
    """A line of metrics.jsonl, or a stage's summary, without what a clock put into it."""
    return {k: v for k, v in row.items() if not CLOCK.search(k)}


def assert_same(expected_run: Path, found_run: Path, stage: str) -> None:
    """Weights and Adam's moments bit for bit, and the metrics of every step."""
    expected, found = weights(expected_run, stage), weights(found_run, stage)
    assert len(expected) > 200  # weights and two moments each
    assert expected.keys() == found.keys()
    different = [name for name in expected if not torch.equal(expected[name], found[name])]
    assert not different, f"{stage}: {different[:5]}"
    assert metrics(found_run, stage) == metrics(expected_run, stage)
