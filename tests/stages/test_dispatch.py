"""Every stage of conf/ has a function that runs it."""

from __future__ import annotations

import importlib
import inspect

from megatron_r1.config import load
from megatron_r1.config.pipeline import PipelineConfig
from megatron_r1.stages import dispatch
from megatron_r1.stages.dispatch import _TRAINED_FROM_A_MODEL as FROM_A_MODEL


def test_every_stage_is_run_by_something():
    source = inspect.getsource(dispatch.run_stage)
    for schema in load._SCHEMAS["stage"].values():
        assert (
            schema in FROM_A_MODEL
            or f"case {schema.__name__}(" in source
            or schema is PipelineConfig
        ), schema
    for name in FROM_A_MODEL.values():
        module = importlib.import_module(f"megatron_r1.stages.{name}")
        assert list(inspect.signature(getattr(module, f"run_{name}")).parameters)[:2] == [
            "session",
            "stage",
        ]
