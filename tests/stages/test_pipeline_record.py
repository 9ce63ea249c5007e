"""What a pipeline's record takes for the same step, and what it refuses; no step is run."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import pytest

from megatron_r1 import __version__
from megatron_r1.config.load import _SCHEMAS, load_config
from megatron_r1.config.paths import is_read
from megatron_r1.errors import DataError
from megatron_r1.stages.pipeline import Record
from megatron_r1.stages.steps import Step, plan_steps
from megatron_r1.telemetry.run_dir import RunDir
from tests.stages.test_pipeline import listed, step

pytestmark = pytest.mark.megatron


def pipeline(root: Path, *overrides: str) -> tuple[Record, dict[str, Step]]:
    """A record of the pipeline in `root`, and its steps."""
    tuned = ["model=tiny_dense", "data=jsonl", f"data.path={root}/prompts.jsonl"]
    collect = ["stage=r1_stage3", *tuned, "stage.max_tokens=64"]
    steps = {
        "base": step(["stage=tiny_base"], {}),
        "zero": step(["stage=r1_zero", *tuned], {"model.init_from": "base"}),
        "three": step(collect, {"model.init_from": "base", "stage.collect.source": "zero"}),
        "judged": step(
            [*collect, "stage.collect.judged_datasets=[essays]"],
            {"model.init_from": "base", "stage.collect.source": "zero"},
        ),
    }
    (root / "prompts.jsonl").write_text('{"question": "1 + 1 =", "answer": "2"}\n')
    settings = ["stage=r1_pipeline", f"run.root={root}", "run.name=p"]
    settings += [f"+stage.steps={{{','.join(f'{name}:{text}' for name, text in steps.items())}}}"]
    short = ["data.max_prompt_tokens=16", "rollout.max_response_tokens=16"]
    config = load_config([*settings, f"stage.common={listed(short)}", *overrides])
    config.run.dir.mkdir(exist_ok=True)
    return Record(config), {found.name: found for found in plan_steps(config, world_size=1)}


def saved(run_dir: Path, update: int) -> None:
    """A checkpoint, as far as a record looks at it."""
    checkpoint = run_dir / f"checkpoints/step_{update:06d}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text(f'{{"step": {update}}}')
    (run_dir / "checkpoints/latest").write_text(checkpoint.name)


def run_all(root: Path) -> None:
    record, steps = pipeline(root)
    for found in steps.values():
        assert not record.decide(found).is_done
        saved(root / "p" / found.name, 1)
        record.done(found, 1.0)


def test_another_judge_changes_what_is_judged(tmp_path):
    run_all(tmp_path)
    record, steps = pipeline(tmp_path, "judge.model=stricter", "judge.temperature=0")
    decisions = {name: record.decide(found).what for name, found in steps.items()}
    changed = "starts over: judge.model, judge.temperature changed"
    assert decisions == {
        **dict.fromkeys(("base", "zero", "three"), "done before"),
        "judged": changed,
    }


def test_half_a_model_is_no_input(tmp_path):
    record, steps = pipeline(tmp_path)
    record.decide(steps["base"])
    saved(tmp_path / "p/base", 1)  # the first of many
    with pytest.raises(DataError, match="is the step base's, which is not done. Run the step base"):
        record.decide(steps["zero"])
    record.done(steps["base"], 1.0)
    assert record.decide(steps["zero"]).what == "begins"
    with RunDir(steps["zero"].config):
        pass  # lock, configuration and manifest, and nothing that was learned
    with pytest.raises(DataError, match="stage.collect.source = .*zero is not there. Run the step"):
        record.decide(steps["three"])


def test_what_a_setting_names_is_told_by_the_setting(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    sample = '{"prompt": "1 + 1 =", "response": "2"}\n'
    (tmp_path / "few.json").write_text(sample)
    (tmp_path / "org/name").mkdir(parents=True)
    settings = ["stage.general=few.json", "judge.model=org/name"]
    changes = f"+stage.changes.judged={listed(settings[:1])}"
    record, steps = pipeline(tmp_path, changes, settings[1])
    for name in ("base", "zero"):
        record.decide(steps[name])
        saved(tmp_path / "p" / name, 1)
        record.done(steps[name], 1.0)
    record.decide(steps["judged"])
    found = record.steps["judged"]
    digest = hashlib.sha256(sample.encode()).hexdigest()
    assert found["inputs"]["stage.general"] == {"path": "few.json", "sha256": digest}
    assert found["settings"]["judge.model"] == "org/name"
    assert found["program"]["version"] == __version__ and "commit" in found["program"]


def test_every_setting_that_may_be_a_path_is_known_to_be_one_or_not():
    """A new setting of this kind fails here until somebody has said which it is."""
    no_paths = ("partition", "account", "qos", "container_image", "router_url", "cache_path")
    unknown = []
    for group, schemas in _SCHEMAS.items():
        for schema in schemas.values():
            for field in dataclasses.fields(schema):
                setting = f"{group}.{field.name}"
                is_text = field.type in ("str | None", "dict[str, str]")
                if group == "cluster" or field.name in no_paths or not is_text:
                    continue
                if not (is_read(setting) or is_read(f"{setting}.any")):
                    unknown.append(setting)
    names = ["rollout.server_args", "stage.columns", "stage.evaluation_inputs"]
    assert sorted(set(unknown)) == names
