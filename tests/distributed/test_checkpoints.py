"""Checkpoints across layouts: converted from and to Hugging Face, and with optimizer state."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

from megatron_r1.checkpoint.conversion import WeightDtype
from megatron_r1.checkpoint.hf_export import export_hf
from megatron_r1.checkpoint.hf_import import import_hf
from megatron_r1.config.load import load_config
from tests.checkpoint.hub import differences, write_like_deepseek, write_with_transformers
from tests.distributed.conversion_worker import (
    FP8,
    LAYOUTS,
    RINGS,
    VOCAB_SIZE,
    base_of,
    layout_name,
    own_settings,
)
from tests.models.families import FAMILIES

WORKER = "tests.distributed.conversion_worker"

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.timeout(1200),
]


@pytest.fixture(scope="module")
def saved(worlds, tmp_path_factory) -> Callable[[int], Path]:
    """Where the worker of a world size left what it saved; it runs once, even if it fails."""

    @cache
    def outcome_of(world_size: int) -> tuple[Path, str]:
        directory = tmp_path_factory.mktemp(f"ranks{world_size}")
        for model, ranks in LAYOUTS:
            if ranks == world_size:
                base = base_of(model)
                overrides = FAMILIES.get(base, [f"model={base}"]) + own_settings(model)
                overrides += [f"model.vocab_size={VOCAB_SIZE}", "model.num_layers=5"]
                config = load_config(overrides).model
                hub = directory / model / "hub"
                if model == FP8:
                    write_like_deepseek(hub, config)
                else:
                    write_with_transformers(hub, config, dtype=torch.bfloat16)
                import_hf(hub, directory / model / "megatron", show_progress=False)
        return directory, worlds.run(WORKER, world_size, str(directory))

    def directory_of(world_size: int) -> Path:
        directory, failure = outcome_of(world_size)
        assert not failure, failure
        return directory

    return directory_of


@pytest.mark.parametrize(("model", "world_size"), sorted(LAYOUTS))
def test_what_any_layout_saved_is_exported_byte_for_byte(model, world_size, saved, tmp_path):
    directory = saved(world_size) / model
    # Trained in float32, which holds every bfloat16 number.
    dtype = WeightDtype.fp8 if model == FP8 else WeightDtype.bfloat16
    for parallel in LAYOUTS[model, world_size]:
        name = layout_name(parallel)
        export_hf(directory / name, tmp_path / name, dtype=dtype, show_progress=False)
        assert differences(directory / "hub", tmp_path / name) == [], parallel


@pytest.mark.parametrize(("model", "world_size"), sorted(k for k in LAYOUTS if k[0] in RINGS))
def test_the_next_step_is_the_old_layouts(model, world_size, saved):
    """Weights, Adam's moments and step counts: loss and gradient norm of the step after."""
    results = json.loads((saved(world_size) / model / "ring.json").read_text())
    assert len(results) == len(LAYOUTS[model, world_size])
    for result in results:
        for metric in ("train/loss", "train/grad_norm"):
            expected, found = result["expected"][metric], result["found"][metric]
            assert found == pytest.approx(expected, rel=1e-5), (metric, result)
