"""One run, one directory, one configuration, one process at a time."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

import pytest
import yaml

from megatron_r1.config.load import load_config
from megatron_r1.errors import RunDirError
from megatron_r1.telemetry.run_dir import RunDir


def config(root, *overrides: str):
    return load_config(["experiment=quickstart", f"run.root={root}", *overrides])


def test_it_says_what_the_run_is(tmp_path):
    RunDir(config(tmp_path, "parallel.tensor=2")).close()
    saved = yaml.safe_load((tmp_path / "quickstart/config.yaml").read_text())
    assert saved["stage"]["zero"]["rollouts_per_prompt"] == 16
    manifest = json.loads((tmp_path / "quickstart/manifest.json").read_text())
    assert manifest["parallel"]["tensor"] == 2
    assert manifest["packages"]["megatron-core"] == "0.16.1"


def open_elsewhere(root, found) -> None:
    try:
        RunDir(config(root)).close()
        found.put("opened")
    except RunDirError as error:
        found.put(str(error))


def test_a_second_process_is_refused_until_the_first_lets_go(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    found = spawn.Queue()

    def try_it() -> str:
        process = spawn.Process(target=open_elsewhere, args=(tmp_path, found))
        process.start()
        answer = found.get(timeout=60)
        process.join()
        return answer

    with RunDir(config(tmp_path)):
        assert "is in use by process" in try_it()
    assert try_it() == "opened"


def test_another_configuration_is_another_run(tmp_path):
    RunDir(config(tmp_path, "algo.kl_beta=0.7")).close()  # refused later, say: claims nothing
    RunDir(config(tmp_path)).close()
    (tmp_path / "quickstart/base").mkdir()
    (tmp_path / "quickstart/base/metrics.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(RunDirError, match="algo.kl_beta: 0.001 -> 0.5.*another run.name"):
        RunDir(config(tmp_path, "algo.kl_beta=0.5"))
    # Lengths, layout and what is only reported may change.
    RunDir(config(tmp_path, "stage.zero.num_steps=500", "parallel.expert=2")).close()
    RunDir(config(tmp_path, "algo.kl_beta=0.5", "run.overwrite=true")).close()


def test_a_run_of_an_earlier_program_goes_on_with_what_came_later_at_its_default(tmp_path):
    path = begun_run(tmp_path)
    saved = yaml.safe_load((path / "config.yaml").read_text())
    del saved["precision"]["attention"]
    saved["stage"]["base"]["optimizer"].pop("beta2")  # of this stage a default of its own
    (path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(RunDirError, match=r"configuration \(precision.attention: auto -> plain\)"):
        RunDir(config(tmp_path, "precision.attention=plain"))
    RunDir(config(tmp_path)).close()
    # What the program has no more, and may have meant something.
    saved["precision"]["rounding"] = "stochastic"
    (path / "config.yaml").write_text(yaml.safe_dump(saved))
    with pytest.raises(RunDirError, match=r"precision.rounding: stochastic -> None"):
        RunDir(config(tmp_path))


def test_another_seed_is_another_run(tmp_path):
    RunDir(config(tmp_path)).close()
    (tmp_path / "quickstart/metrics.jsonl").touch()
    with pytest.raises(RunDirError, match="run.seed: 1 -> 2"):
        RunDir(config(tmp_path, "run.seed=2"))


def begun_run(root) -> Path:
    """A run that has made a step."""
    RunDir(config(root)).close()
    path = root / "quickstart"
    (path / "base").mkdir()
    (path / "base/metrics.jsonl").write_text('{"step": 1}\n')
    return path


def test_overwrite_deletes_the_old_run_once_the_new_one_has_made_a_step(tmp_path):
    path = begun_run(tmp_path)
    new = RunDir(config(tmp_path, "run.overwrite=true", "run.seed=2"))
    assert not (path / "base").exists()
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    new.close()
    assert sorted(entry.name for entry in path.iterdir()) == [
        ".lock",
        "config.yaml",
        "manifest.json",
        "metrics.jsonl",
    ]


def test_parts_of_samples_belong_to_a_configuration(tmp_path):
    RunDir(config(tmp_path)).close()
    parts = tmp_path / "quickstart/data/samples"
    parts.mkdir(parents=True)
    (parts / "part_00000.jsonl").touch()
    with pytest.raises(RunDirError, match="data.num_problems: .* -> 7"):
        RunDir(config(tmp_path, "data.num_problems=7"))
    RunDir(config(tmp_path)).close()


@pytest.mark.parametrize(
    "made", ["data/samples/part_00000.jsonl", "eval/heldout/sums.json", "corpus.jsonl"]
)
def test_what_other_stages_make_replaces_the_old_run_too(tmp_path, made):
    path = begun_run(tmp_path)
    new = RunDir(config(tmp_path, "run.overwrite=true", "run.seed=2"))
    (path / made).parent.mkdir(parents=True, exist_ok=True)
    (path / made).touch()
    new._lock.close()  # as the kernel does for one that is killed
    newer = RunDir(config(tmp_path, "run.overwrite=true", "run.seed=3"))
    assert not (path / made).exists()
    newer.close()  # has made nothing: the one before it comes back, not the first
    assert (path / made).is_file() and not (path / "base").exists()

    RunDir(config(tmp_path, "run.seed=2")).close()
    assert (path / made).is_file()


def test_a_job_overwrites_once_however_often_slurm_starts_it(tmp_path, monkeypatch):
    path = begun_run(tmp_path)
    overwrite = config(tmp_path, "run.overwrite=true")
    monkeypatch.setenv("SLURM_JOB_ID", "7")

    # Restart 0 died before it got here.
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    killed = RunDir(overwrite)
    killed._lock.close()  # as the kernel does
    assert not (path / "base").exists()

    # Before its first step it was asked to stop: what there was comes back, and is replaced again.
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    RunDir(overwrite).close()
    assert (path / "base").exists()
    monkeypatch.setenv("SLURM_RESTART_COUNT", "3")
    killed = RunDir(overwrite)
    assert not (path / "base").exists()
    (path / "metrics.jsonl").write_text('{"step": 1}\n')
    killed._lock.close()

    monkeypatch.setenv("SLURM_RESTART_COUNT", "4")
    RunDir(overwrite).close()
    assert (path / "metrics.jsonl").exists() and not (path / ".replaced").exists()

    monkeypatch.setenv("SLURM_RESTART_COUNT", "0")  # the same command again, in one allocation
    RunDir(overwrite)
    assert not (path / "metrics.jsonl").exists()


def test_overwrite_by_a_run_that_never_begins_loses_nothing(tmp_path):
    path = begun_run(tmp_path)
    before = {f.name: f.read_bytes() for f in (path / "config.yaml", path / "base/metrics.jsonl")}
    RunDir(config(tmp_path, "run.overwrite=true", "run.seed=2")).close()
    after = {f.name: f.read_bytes() for f in (path / "config.yaml", path / "base/metrics.jsonl")}
    assert after == before

    killed = RunDir(config(tmp_path, "run.overwrite=true", "run.seed=2"))
    killed._lock.close()  # as the kernel does
    RunDir(config(tmp_path, "run.overwrite=true", "run.seed=3")).close()
    assert (path / "base/metrics.jsonl").read_bytes() == before["metrics.jsonl"]


@pytest.mark.parametrize("manifest", [None, "{}", "not JSON"])
def test_overwrite_leaves_what_this_program_did_not_make(tmp_path, manifest):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("years of work")
    if manifest is not None:
        (mine / "manifest.json").write_text(manifest)
    with pytest.raises(RunDirError, match="was not made by this program"):
        RunDir(config(tmp_path, "run.name=mine", "run.overwrite=true"))
    assert (mine / "thesis.tex").read_text() == "years of work"
