"""A line of stages, each a job of its own with a checked configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_r1.config.cluster import SlurmConfig
from megatron_r1.config.load import load_config
from megatron_r1.config.overrides import quoted
from megatron_r1.config.pipeline import PipelineConfig
from megatron_r1.config.run import RunConfig
from megatron_r1.errors import ConfigError
from megatron_r1.stages.steps import plan_steps


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
    it. A pipeline is a chain of its steps, all in the pipeline's run directory.

    Raises:
        ConfigError: a link's configuration is impossible, or they differ in their cluster.
    """
    stages = [o.removeprefix("stage=") for o in overrides if o.startswith("stage=")]
    others = [o for o in overrides if not o.startswith("stage=")]
    names = stages[-1].split(",") if stages else []
    if len(names) < 2:
        config = load_config(overrides)
        if isinstance(config.stage, PipelineConfig):
            return _steps_of(config, overrides)
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


def _steps_of(config: RunConfig, overrides: Sequence[str]) -> list[Link]:
    """A job for each step, which does nothing where the step is done already.

    They share a run directory: `run.overwrite` is for the first job alone.
    """
    cluster = config.cluster
    world_size = cluster.world_size if isinstance(cluster, SlurmConfig) else 1
    names = [step.name for step in plan_steps(config, world_size)]
    chosen = [name for name in names if not config.stage.only or name in config.stage.only]
    links = []
    for number, name in enumerate(chosen):
        goes_on = ["run.overwrite=false"] if number and config.run.overwrite else []
        links.append(Link(name, [*overrides, *goes_on, f"stage.only=[{name}]"], config))
    return links
