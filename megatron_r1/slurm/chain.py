"""A line of stages, each a job of its own with a checked configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_r1.config.load import load_config
from megatron_r1.config.run import RunConfig
from megatron_r1.errors import ConfigError


@dataclass(frozen=True)
class Link:
    """One stage of a chain."""

    name: str
    """Of the job: the stage, numbered where there are several."""
    overrides: list[str]
    """As the program takes them."""
    config: RunConfig


def plan_chain(overrides: Sequence[str]) -> list[Link]:
    """Split ``stage=a,b`` into links, and check each before anything is submitted.

    In a chain of several each has a run directory of its own, ``run.name`` with the stage behind
    it.

    Raises:
        ConfigError: a link's configuration is impossible, or they differ in their cluster.
    """
    stages = [o.removeprefix("stage=") for o in overrides if o.startswith("stage=")]
    others = [o for o in overrides if not o.startswith("stage=")]
    names = stages[-1].split(",") if stages else []
    if len(names) < 2:
        config = load_config(overrides)
        return [Link(config.stage.name, list(overrides), config)]
    prefix = load_config([*others, f"stage={names[0]}"]).run.name
    links = []
    for number, stage in enumerate(names):
        run_name = f"{prefix}/{number}_{stage}"
        own = [*others, f"stage={stage}", f"run.name={quoted(run_name)}"]
        links.append(Link(f"{number}_{stage}", own, load_config(own)))
    if any(link.config.cluster != links[0].config.cluster for link in links):
        raise ConfigError("the stages of a chain differ in their cluster: set one for all")
    return links


def quoted(value: str) -> str:
    """A text as Hydra takes it, whatever is in it."""
    inner = value.replace("\\", "\\\\") if value.endswith("\\") else value
    return "'" + inner.replace("'", "\\'") + "'"
