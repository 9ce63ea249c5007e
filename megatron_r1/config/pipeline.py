"""`stage=r1_pipeline`: runs of other stages, one after another, and the table at their end."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import ClassVar

from megatron_r1.config.stage import StageConfig
from megatron_r1.config.tiny_world import TinyWorldConfig
from megatron_r1.errors import ConfigError

EVALUATE = "evaluate_"
"""Before the name of a step: the evaluation of the model that it makes."""


@dataclass(kw_only=True)
class EvaluationStageConfig(StageConfig):
    """`python -m megatron_r1.evaluate` as a stage: `model.init_from` on the suites of
    `evaluation`."""

    starts_from: ClassVar[str] = "a model to measure"
    samples: ClassVar[bool] = True

    name: str = "evaluation"


@dataclass(kw_only=True)
class TinyWorldStageConfig(StageConfig):
    """The files of the tiny world, written into the run directory."""

    name: str = "tiny_world"
    world: TinyWorldConfig = field(default_factory=TinyWorldConfig)


class Endpoint(Enum):
    """A model behind an OpenAI-compatible endpoint that a pipeline starts for its steps."""

    none = "none"
    """Steps ask the endpoints that their own settings name."""
    tiny_world = "tiny_world"
    """The tiny world's scripted teacher: `judge`, `evaluation.judge` and `stage.teacher` of every
    step ask it."""


@dataclass(kw_only=True)
class PipelineStepConfig:
    """One run of the pipeline, in a folder of its name in the pipeline's run directory."""

    overrides: list[str] = field(default_factory=list)
    """As `python -m megatron_r1.train` takes them, its stage among them."""
    inputs: dict[str, str] = field(default_factory=dict)
    """Setting -> an earlier step, whose model it is, or ``step:file`` in the step's folder."""


@dataclass(kw_only=True)
class PipelineConfig(StageConfig):
    """From a base model to R1 (arXiv:2501.12948v2 Fig. 2).

    Steps take `run`, `cluster`, `telemetry` and `judge` from the pipeline, and `parallel` and
    `precision` too unless their own overrides name any of these; everything else is in their
    overrides, and refused where it is asked of the pipeline.
    """

    name: str = "r1_pipeline"
    common: list[str] = field(default_factory=list)
    """Overrides of every step, before its own."""
    steps: dict[str, PipelineStepConfig] = field(default_factory=dict)
    """In their order. A step's inputs are made by steps before it."""
    every: list[str] = field(default_factory=list)
    """More overrides of every step and evaluation, behind their own, for the command line:
    ``'stage.every=["rollout=sglang"]'``."""
    changes: dict[str, list[str]] = field(default_factory=dict)
    """Step -> more overrides, behind `every`, for the command line:
    ``'+stage.changes.r1_zero=["stage.num_steps=4"]'``."""
    columns: dict[str, str] = field(default_factory=dict)
    """Column of the table -> the step that makes its model. Each is evaluated behind its step."""
    evaluation: list[str] = field(default_factory=list)
    """Overrides of every evaluation, behind `common`."""
    evaluation_inputs: dict[str, str] = field(default_factory=dict)
    """Files of every evaluation, as a step's inputs."""
    given: dict[str, str] = field(default_factory=dict)
    """Name -> a model that is there already, for inputs and columns: a run, a checkpoint or a
    Hugging Face model."""
    endpoint: Endpoint = Endpoint.none
    only: list[str] = field(default_factory=list)
    """Run these steps alone, each on what the others have made: one job of a chain. Empty: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        models = [*self.given, *self.steps]
        unknown = [name for name in self.columns.values() if name not in models]
        if unknown:
            raise ConfigError(
                f"columns names {', '.join(unknown)}, which is neither a step nor in given. Those "
                f"are: {', '.join(models)}"
            )
        known = [*self.steps, *(EVALUATE + step for step in self.columns.values())]
        for setting, names in (
            ("changes", self.changes),
            ("only", self.only),
        ):
            unknown = [name for name in names if name not in known]
            if unknown:
                raise ConfigError(
                    f"{setting} names {', '.join(unknown)}, which is no step. Steps: "
                    f"{', '.join(known)}"
                )
        for name in models:
            if not name.isidentifier() or name.startswith(EVALUATE):
                raise ConfigError(
                    f"steps: {name!r} is no name for a step: letters, digits and _, and not "
                    f"{EVALUATE} at its beginning"
                )
