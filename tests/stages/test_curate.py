"""Curation as a step of the tiny pipeline, on its real files."""

from __future__ import annotations

import json

import pytest

from megatron_r1.config.curation import CurateStageConfig
from megatron_r1.config.load import load_config
from megatron_r1.data.tiny_world.write import write_world
from megatron_r1.errors import ConfigError
from megatron_r1.stages.curate import run_curate
from megatron_r1.stages.pipeline_record import Record
from megatron_r1.stages.steps import plan_steps

pytestmark = pytest.mark.megatron


def test_what_rl_reads_of_the_tiny_world(tmp_path):
    config = load_config(["experiment=r1_pipeline_tiny", f"run.root={tmp_path}", "run.name=p"])
    steps = {step.name: step for step in plan_steps(config, world_size=1)}
    assert [*steps][:2] == ["world", "curate"]
    for name, step in steps.items():
        assert step.inputs.get("data.path", "curate:").startswith("curate:"), name
    world, curate = tmp_path / "p/world", tmp_path / "p/curate"
    write_world(world, steps["world"].config.stage.world)
    before = [json.loads(line) for line in (world / "reasoning.jsonl").open(encoding="utf-8")]
    # A question of the suites, and one twice, among those of RL.
    suite = (world / "heldout_reasoning.jsonl").read_text(encoding="utf-8").splitlines(True)[0]
    twice = json.dumps({**before[0], "id": "again"}) + "\n"
    with (world / "reasoning.jsonl").open("a", encoding="utf-8") as file:
        file.write(suite + twice)

    record = Record(config)
    # As if the world had been written like this.
    record.steps["world"] = {"status": "done"}
    assert record.decide(steps["curate"]).what == "begins"
    table = run_curate(steps["curate"].config.stage, curate)
    record.done(steps["curate"], 1.0)

    after = [json.loads(line) for line in (curate / "reasoning.jsonl").open(encoding="utf-8")]
    assert [{k: v for k, v in row.items() if k != "lineage"} for row in after] == before
    counts = json.loads((tmp_path / "p/pipeline.json").read_text())["steps"]["curate"]["counts"]
    found = {
        name: ([step["dropped"] for step in of_set["steps"]], of_set["kept"])
        for name, of_set in counts.items()
    }
    # bad line, contaminated, exact and near duplicate: docs/tiny_world.md has these, too
    assert found == {
        "reasoning": ([0, 1, 1, 0], 1024),
        "scenarios": ([0, 0, 0, 0], 800),
    }
    with (curate / "reasoning.dropped.jsonl").open(encoding="utf-8") as file:
        dropped = [(row["line"], row["step"]) for row in map(json.loads, file)]
    assert dropped == [(1025, "contaminated"), (1026, "exact duplicate")]
    assert (curate / "curation.txt").read_text(encoding="utf-8") == table + "\n"


def test_a_stage_without_sets_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"stage.sets is empty: name a file, \+stage.sets.NAME="):
        run_curate(load_config(["stage=curate"]).stage, tmp_path)
    with pytest.raises(ConfigError, match="'../x' is no name for a file"):
        CurateStageConfig(sets={"../x": "a.jsonl"})
