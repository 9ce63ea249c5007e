"""Which settings name what a run reads: files and models, known by their content."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

READ = (
    "model.init_from",
    "algo.critic_init_from",
    "data.path",
    "data.heldout_path",
    "data.tokenizer",
    "reward.models.*",
    "stage.examples",
    "stage.heldout",
    "stage.teacher",
    "stage.documents",
    "stage.*.documents",
    "stage.few_shot",
    "stage.general",
    "stage.collect.source",
    "stage.given.*",
    "stage.sets.*",
    "stage.against.*",
    "stage.curation.difficulty.rollouts.*",
    "stage.curation.decontamination.files.*",
    "evaluation.suites.*.path",
)
"""By name, in the form of `flatten`: whether a file of that name is there says nothing, as
``few.json`` may be one and ``org/model`` a folder by chance."""


def is_read(setting: str) -> bool:
    """Whether a setting's value is the path of something that the run reads."""
    return any(fnmatchcase(setting, pattern) for pattern in READ)


def paths_read(settings: Mapping[str, Any]) -> dict[str, str]:
    """Those of a run's settings that are set, by name."""
    return {key: str(value) for key, value in settings.items() if value and is_read(key)}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}, "c": ["x"]}`` as ``{"a.b": 1, "c": ["x"]}``; a list of files is taken
    apart, ``c.0``; what is empty is kept: an entry may have no settings of its own.

    >>> flatten({"stage": {"curation": {"difficulty": {"rollouts": ["a", "b"]}}}})
    {'stage.curation.difficulty.rollouts.0': 'a', 'stage.curation.difficulty.rollouts.1': 'b'}
    """
    if isinstance(value, list) and value and is_read(f"{prefix}.0"):
        value = {str(index): item for index, item in enumerate(value)}
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= flatten(item, f"{prefix}.{key}" if prefix else str(key))
    return flat
