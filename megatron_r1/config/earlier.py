"""Configurations that the program saved, which may be those of an earlier version of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from megatron_r1.config.load import to_yaml
from megatron_r1.config.paths import flatten
from megatron_r1.config.run import RunConfig


def settings_of(config: RunConfig) -> dict[str, Any]:
    """Every setting, as it is saved, in the form of `flatten`."""
    return flatten(OmegaConf.to_container(OmegaConf.create(to_yaml(config))))


def changed_settings(
    before: Mapping[str, Any], now: Mapping[str, Any], config: RunConfig
) -> dict[str, tuple[Any, Any]]:
    """Settings that differ: name -> (before, now); None is not there.

    One that was not there before came with a later version of the program, whose default does what
    had been done.

    Args:
        now: some or all of `settings_of(config)`.
    """
    before = {name: _default(config, name) for name in now} | dict(before)
    return {
        name: (before.get(name), now.get(name))
        for name in sorted(before)
        if before.get(name) != now.get(name)
    }


def _default(config: Any, setting: str) -> Any:
    """A setting's value where nobody says it; None where it has none, as entries of a dict."""
    *owners, name = setting.split(".")
    for owner in owners:
        config = config.get(owner) if isinstance(config, dict) else getattr(config, owner, None)
    fields = dataclasses.fields(config) if dataclasses.is_dataclass(config) else ()
    for field in fields:
        if field.name == name:
            return _plain(field)
    return None


def _plain(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    elif field.default is not dataclasses.MISSING:
        value = field.default
    else:
        return None
    return OmegaConf.to_container(OmegaConf.create({"value": value}), enum_to_str=True)["value"]
