"""What a pipeline's record takes for the same step, and what it refuses; no step is run."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import shutil
from pathlib import Path

import pytest

from megatron_r1 import __version__
from megatron_r1.config.load import _SCHEMAS, load_config
from megatron_r1.config.paths import is_read
from megatron_r1.config.precision import AttentionBy, PrecisionConfig
from megatron_r1.errors import ConfigError, DataError
from megatron_r1.stages.pipeline_record import RECORD, Record
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


def forget(root: Path, setting: str) -> None:
    """Leave rows as they were before there was such a setting."""
    file = root / "p" / RECORD
    rows = json.loads(file.read_text())
    for row in (*rows["steps"].values(), *rows["replaced"].values()):
        row["settings"].pop(setting)
    file.write_text(json.dumps(rows))


def test_what_an_earlier_program_made_is_done(tmp_path, monkeypatch):
    """What came later counts at its default, and is known from then on."""
    run_all(tmp_path)
    forget(tmp_path, "precision.attention")
    record, steps = pipeline(tmp_path)
    assert {record.decide(found).what for found in steps.values()} == {"done before"}
    changed = "starts over: precision.attention changed"
    record, steps = pipeline(
        tmp_path, f"+stage.changes.zero={listed(['precision.attention=plain'])}"
    )
    assert record.decide(steps["zero"]).what == changed
    attention = PrecisionConfig.__dataclass_fields__["attention"]
    monkeypatch.setattr(attention, "default", AttentionBy.plain)  # a still later program's
    record, steps = pipeline(tmp_path)
    assert record.decide(steps["base"]).what == changed


def test_what_an_earlier_program_set_aside_comes_back(tmp_path):
    run_all(tmp_path)
    record, steps = pipeline(tmp_path, f"+stage.changes.zero={listed(['optimizer.lr=1.0'])}")
    assert record.decide(steps["zero"]).what == "starts over: optimizer.lr changed"
    forget(tmp_path, "optimizer.beta2")  # of stages a default of their own
    record, steps = pipeline(tmp_path)
    assert record.decide(steps["zero"]).what == "done before, and set aside: it is back"


@pytest.mark.parametrize("lacking", ["settings", "inputs", "status", "outputs"])
def test_a_row_that_lacks_something_is_told(lacking, tmp_path):
    run_all(tmp_path)
    file = tmp_path / "p" / RECORD
    rows = json.loads(file.read_text())
    del rows["steps"]["zero"][lacking]
    file.write_text(json.dumps(rows))
    with pytest.raises(
        DataError, match=f"{RECORD} cannot be read: KeyError.*{lacking}.*Restore it"
    ):
        pipeline(tmp_path)


def test_a_mistaken_setting_costs_its_own_run(tmp_path):
    """What was done before it comes back with the right one, and is in no danger from a run that
    was never done; the table is of what is configured."""
    run_all(tmp_path)
    model = tmp_path / "p/zero/checkpoints/step_000001/state.json"
    for lr, number_of_updates in (("1.0", 7), ("2.0", 8)):
        record, steps = pipeline(tmp_path, f"+stage.changes.zero={listed([f'optimizer.lr={lr}'])}")
        assert [step.name for step in record.current(list(steps.values()))] == ["base"]
        assert record.decide(steps["zero"]).what == "starts over: optimizer.lr changed"
        assert not model.exists() and record.decide(steps["zero"]).what == "goes on"
        saved(tmp_path / "p/zero", number_of_updates)  # and is stopped

    record, steps = pipeline(tmp_path)
    assert [step.name for step in record.current(list(steps.values()))] == ["base"]
    assert record.decide(steps["zero"]).what == "done before, and set aside: it is back"
    assert model.exists()
    record, steps = pipeline(tmp_path)
    assert {record.decide(found).what for found in steps.values()} == {"done before"}
    assert record.current(list(steps.values())) == list(steps.values())
    shutil.rmtree(tmp_path / "p/judged")
    assert record.current(list(steps.values())) == list(steps.values())[:-1]


def test_a_kill_while_folders_change_places_loses_no_model(tmp_path, monkeypatch):
    run_all(tmp_path)
    _, steps = pipeline(tmp_path)
    record, changed = pipeline(tmp_path, f"+stage.changes.zero={listed(['optimizer.lr=1.0'])}")
    record.decide(changed["zero"])
    saved(tmp_path / "p/zero", 7)
    record.done(changed["zero"], 1.0)
    config = load_config(["stage=r1_pipeline", f"run.root={tmp_path}", "run.name=p"])
    here, there = changed["zero"], steps["zero"]
    for number in (1, 2, 3):
        with monkeypatch.context() as patched:
            patched.setattr(Path, "rename", killed_at(number))
            with pytest.raises(KeyboardInterrupt):
                Record(config).decide(there)
        for wanted in (here, there, here):
            assert Record(config).decide(wanted).is_done, number


def killed_at(number: int):
    """A rename that is the last thing not done."""
    rename, calls = Path.rename, itertools.count(1)

    def rename_or_die(path: Path, target: Path) -> Path:
        if next(calls) == number:
            raise KeyboardInterrupt
        return rename(path, target)

    return rename_or_die


def test_a_setting_that_no_step_would_take_is_refused(tmp_path):
    for asked in ("optimizer.lr=1.0", "model=tiny_dense", "data.template=plain"):
        with pytest.raises(ConfigError, match="no step of a pipeline takes this from it. Ask it"):
            pipeline(tmp_path, asked)
    _, steps = pipeline(tmp_path, f"stage.every={listed(['optimizer.lr=3e-5'])}")
    assert {found.config.optimizer.lr for found in steps.values()} == {3e-5}


def test_the_papers_pipeline_asks_for_its_files_and_fits_together():
    with pytest.raises(ConfigError, match="stage.given.base, .*stage.given.scenarios must be set"):
        load_config(["experiment=r1_pipeline"])
    names = ("base", "reasoning", "scenarios", "general_sft", "pairs", "labelled")
    given = [f"stage.given.{name}=/data/{name}" for name in names]
    layout = ["parallel.tensor=8", "parallel.max_tokens_per_microbatch=66560"]
    config = load_config(["experiment=r1_pipeline", *given, *layout])
    steps = {found.name: found for found in plan_steps(config, world_size=512)}
    trained = "r1_zero r1_stage1 r1_stage2 r1_stage3 rm_helpful rm_safety r1_stage4".split()
    assert [name for name in steps if not name.startswith("evaluate_")] == ["curate", *trained]
    assert {steps[name].config.model.num_layers for name in trained} == {61}
    assert steps["r1_stage4"].makers == ("curate", "r1_stage3", "rm_helpful", "rm_safety")
    assert steps["evaluate_r1_zero"].config.evaluation.max_prompt_tokens == 8192


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
