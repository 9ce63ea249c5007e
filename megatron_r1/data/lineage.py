"""Where an example comes from: prompt, line, the model that wrote it, and what judged it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from megatron_r1.data.records import Line


@dataclass(frozen=True)
class Lineage:
    """What one would need to know to make the example again. What is not known is None."""

    prompt_id: str
    source: str | None = None
    """The first file that it was read from."""
    line: int | None = None
    model: str | None = None
    """A run, a checkpoint or an endpoint."""
    model_version: int | None = None
    """Updates that the model had seen."""
    seed: int | None = None
    """Keys the sampler."""
    sample: int | None = None
    verdicts: Mapping[str, Any] = field(default_factory=dict)
    """Rule or judge -> what it said: ``{"accuracy": 1.0, "pass_rate": 0.25}``."""

    def to_record(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in dataclasses.asdict(self).items()
            if value is not None and value != {}
        }

    def with_verdict(self, name: str, value: Any) -> Lineage:
        return dataclasses.replace(self, verdicts={**self.verdicts, name: value})


_TYPES: dict[str, tuple[type, ...]] = {
    "prompt_id": (str,),
    "source": (str,),
    "line": (int,),
    "model": (str,),
    "model_version": (int,),
    "seed": (int,),
    "sample": (int,),
    "verdicts": (dict,),
}


def lineage_of(record: Mapping[str, Any], own_id: str, line: Line) -> Lineage:
    """What a record says in ``lineage``, or as a line of a run's rollouts/; the line for the rest.

    Raises:
        ValueError: a lineage that cannot be read.
    """
    here: dict[str, Any] = {"prompt_id": own_id, "source": str(line.path), "line": line.number}
    if "lineage" in record:
        return Lineage(**{**here, **lineage_fields(record["lineage"])})
    sampled = {
        "prompt_id": record.get("prompt_id"),
        "model_version": record.get("weight_version"),
        "sample": record.get("sample"),
        "verdicts": record.get("parts"),
    }
    return Lineage(**{**here, **lineage_fields(sampled)})


def lineage_fields(found: Any) -> dict[str, Any]:
    """What is known of what a file says in ``lineage``; raises ValueError where that is none."""
    if not isinstance(found, dict):
        raise ValueError(f"'lineage' must be an object, got {type(found).__name__}")
    known = {}
    for name, value in found.items():
        if name not in _TYPES:
            raise ValueError(f"'lineage' has an unknown key {name!r}; it has {', '.join(_TYPES)}")
        if value is None:
            continue  # Parquet has every key of an object in every row
        if not isinstance(value, _TYPES[name]) or isinstance(value, bool):
            expected = _TYPES[name][0].__name__
            raise ValueError(f"'lineage.{name}' must be {expected}, got {type(value).__name__}")
        known[name] = value
    return known
