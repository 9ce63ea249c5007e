"""Every stage of conf/ has a function that runs it."""

from __future__ import annotations

import importlib
import inspect

import pytest
import torch

from megatron_r1.config import load
from megatron_r1.config.pipeline import PipelineConfig
from megatron_r1.errors import ConfigError
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


@pytest.mark.megatron
@pytest.mark.skipif(torch.cuda.is_available(), reason="it may be had here")
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (
            ["experiment=quickstart", "algo=ppo", "algo.critic_optimizer.bf16_moments=true"],
            "^algo.critic_optimizer.bf16_moments: ",
        ),
        (
            [
                "experiment=r1_pipeline_tiny",
                "+stage.changes.r1_zero=['optimizer.bf16_moments=true']",
            ],
            "^step r1_zero: optimizer.bf16_moments: ",
        ),
    ],
)
def test_what_a_device_cannot_do_is_told_before_the_first_step(overrides, told, tmp_path):
    config = load.load_config([*overrides, f"run.root={tmp_path}"])
    with pytest.raises(ConfigError, match=told):
        dispatch.check_run(config, 1)
        dispatch.run_stage(config)
    assert not list(tmp_path.iterdir())
