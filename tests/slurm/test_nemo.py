"""The same jobs through NeMo-Run: headers, overrides, chains, exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from megatron_r1.config.load import load_config
from tests.slurm.jobs import last_words
from tests.slurm.test_sbatch import AWKWARD, PROBE, ROOT
from tests.stages.test_pipeline import listed, step

pytest.importorskip("nemo_run", reason="needs NeMo-Run: bash launch/setup_env.sh launch")

pytestmark = [pytest.mark.slurm, pytest.mark.xdist_group("slurm")]

HEADER = re.compile(r"^#SBATCH --([a-z-]+)=(\S+)", re.MULTILINE)
ALIKE = ("nodes", "ntasks-per-node", "gpus-per-node", "time", "signal", "open-mode")
SECRET = "hf_9876543210_not_for_any_file"


def launch(directory: Path, *arguments: str, env=os.environ, timeout_s: int = 240, **more: str):
    return subprocess.run(
        [sys.executable, "-m", "megatron_r1.launch", *arguments],
        cwd=directory,
        env={**env, "HF_TOKEN": SECRET, **more},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


def test_the_scripts_ask_for_what_nemo_run_asks(tmp_path):
    """The exceptions: --requeue, which NeMo-Run gives sbatch on the command line, and log files."""
    done = launch(tmp_path, "--dry-run", "experiment=quickstart", "cluster=slurm")
    assert done.returncode == 0, done.stderr
    asked = dict(HEADER.findall(done.stdout))
    texts = [path.read_text() for path in sorted((ROOT / "launch").glob("*.sh"))]
    scripts = [text for text in texts if "#SBATCH" in text]
    assert len(scripts) == 7
    for text in scripts:
        kept = dict(HEADER.findall(text))
        assert {key: kept.get(key) for key in ALIKE} == {key: asked.get(key) for key in ALIKE}
        assert "\n#SBATCH --requeue\n" in text
    config = load_config(["experiment=quickstart", "cluster=slurm"]).cluster
    assert asked["signal"] == f"USR1@{config.warn_s}" and kept["nodes"] == str(config.nodes)
    assert "sbatch --requeue" in done.stdout
    assert "--wait=60" in done.stdout and "launch/step.sh" in done.stdout


def test_rollout_nodes_are_a_second_component(tmp_path):
    nodes = ["rollout=sglang", "cluster.rollout_nodes=3"]
    done = launch(tmp_path, "--dry-run", "experiment=quickstart", "cluster=slurm", *nodes)
    assert done.returncode == 0, done.stderr
    ranks, servers = done.stdout.split("#SBATCH hetjob")
    asked = [dict(HEADER.findall(part)) for part in (ranks, servers)]
    assert [(part["nodes"], part["ntasks-per-node"]) for part in asked] == [("2", "8"), ("3", "1")]
    assert [part["gpus-per-node"] for part in asked] == ["8", "8"]
    commands = re.findall(r"srun --het-group=(\d) .*launch/step.sh (\S+)", servers)
    assert commands == [("0", "experiment=quickstart"), ("1", "serve")]


def test_overrides_arrive_unchanged_and_secrets_nowhere(slurm, tmp_path):
    overrides = [
        "experiment=quickstart",
        "cluster=slurm_onehost",
        "+cluster.env.NOTE='two words, $HOME'",
        *(f"+data.task_options.x{number}={hydra_text(o)}" for number, o in enumerate(AWKWARD)),
    ]
    probe = {"MEGATRON_R1_PYTHON": str(PROBE), "PROBE_DIR": str(tmp_path)}
    done = launch(tmp_path, *overrides, env=slurm.env, **probe)
    assert done.returncode == 0, done.stdout + done.stderr
    for rank in range(2):
        seen = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert seen["argv"] == ["-m", "megatron_r1.train", *overrides]
        assert (seen["sum"], seen["WORLD_SIZE"]) == (1, "2")
        assert seen["NOTE"] == "two words, $HOME"
    for path in tmp_path.rglob("*"):
        if path.is_file():
            assert SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in done.stdout + done.stderr


def hydra_text(text: str) -> str:
    return "'" + text.replace("'", "\\'") + "'"


def test_the_same_command_runs_stages_here(tmp_path):
    chain = ["stage=tiny_base,r1_zero", "rollout.max_response_tokens=64", "cluster=local"]
    dry = launch(tmp_path, "--dry-run", *chain)
    assert dry.returncode == 0, dry.stderr
    stages = [line.split()[-2] for line in dry.stdout.splitlines()]
    assert stages == ["stage=tiny_base", "stage=r1_zero"]
    unread = ["stage=r1_zero", "data=jsonl", "data.path=nowhere.jsonl"]  # until the stage starts
    unread.append("model.init_from=base")
    done = launch(tmp_path, *unread, "rollout.max_response_tokens=64", "data.max_prompt_tokens=64")
    assert done.returncode == 2
    assert "nowhere.jsonl" in done.stderr


def test_a_secret_in_the_configuration_is_refused(tmp_path):
    done = launch(tmp_path, "cluster=slurm", "+cluster.env.HF_TOKEN=x")
    assert done.returncode == 2
    assert "cluster.env holds HF_TOKEN" in done.stderr and not list(tmp_path.iterdir())


def test_a_chain_stops_after_a_stage_that_failed(slurm, tmp_path):
    """The second stage ends with exit code 2, and has no second start. One that names no model to
    start from is not submitted."""
    chain = "stage=r1_zero,r1_stage2,r1_zero"
    small = ["data.max_prompt_tokens=64", "rollout.max_response_tokens=64"]
    unnamed = launch(tmp_path, chain, "cluster=slurm_onehost", *small, env=slurm.env)
    assert unnamed.returncode == 2 and "set model.init_from=DIR" in unnamed.stderr
    assert not list(tmp_path.iterdir())
    small.append("model.init_from=base")
    probe = {"MEGATRON_R1_PYTHON": str(PROBE), "PROBE_DIR": str(tmp_path)}
    failing = {"PROBE_FAILS_ON": "stage=r1_stage2"}
    done = launch(
        tmp_path, chain, "cluster=slurm_onehost", *small, env=slurm.env, **probe, **failing
    )
    assert done.returncode == 1, done.stdout + done.stderr
    states = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert [words[-1] for words in states] == ["COMPLETED", "FAILED", "CANCELLED"]
    assert slurm.job(states[1][2])["Restarts"] == "0"
    seen = json.loads((tmp_path / "rank0.json").read_text())["argv"]
    assert "stage=r1_stage2" in seen and "run.name='r1_zero/1_r1_stage2'" in seen


@pytest.mark.megatron
@pytest.mark.timeout(1200)
def test_a_pipeline_runs_as_a_chain_to_its_table(slurm, tmp_path):
    """Three real jobs in one run directory, each on what the one before has made."""
    world = ["stage=tiny_world", "stage.world.num_documents=400", "stage.world.num_general=4"]
    world += ["stage.world.num_pairs=4", "stage.world.num_labelled=4", "stage.world.num_heldout=4"]
    base = ["stage=tiny_base", "stage.num_steps=1", "stage.sequences_per_step=4"]
    steps = {
        "world": step(world, {}),
        "base": step(base, {"stage.documents": "world:corpus.jsonl"}),
    }
    common = ["model=tiny_dense", "model.num_layers=1", "data.template=plain"]
    common += ["data.max_prompt_tokens=64", "rollout.max_response_tokens=4"]
    suite = ["evaluation=tiny_world", "evaluation.suites.reasoning.samples=1"]
    chain = [
        "stage=r1_pipeline",
        f"+stage.steps={{{','.join(f'{name}:{text}' for name, text in steps.items())}}}",
        f"stage.common={listed(common)}",
        "+stage.columns={base:base}",
        f"stage.evaluation={listed(suite)}",
        "+stage.evaluation_inputs={evaluation.suites.reasoning.path:'world:heldout_reasoning.jsonl'}",
        *("cluster=slurm_onehost", "cluster.nodes=1", "run.name=chained"),
        *("telemetry.tensorboard=false", "telemetry.progress=false"),
    ]
    here = {"MEGATRON_R1_PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    done = launch(tmp_path, *chain, env=slurm.env, timeout_s=500, **here)
    assert done.returncode == 0, done.stdout + done.stderr + last_words(tmp_path)
    states = [line.split() for line in done.stdout.splitlines()[-3:]]
    assert [words[-1] for words in states] == ["COMPLETED"] * 3
    record = json.loads((tmp_path / "runs/chained/pipeline.json").read_text())["steps"]
    assert list(record) == ["world", "base", "evaluate_base"]
    assert {row["status"] for row in record.values()} == {"done"}
    measured = record["evaluate_base"]["inputs"]["model.init_from"]
    assert measured["sha256"] == record["base"]["outputs"]["model"]
    table = json.loads((tmp_path / "runs/chained/table.json").read_text())
    assert table["columns"] == ["base"] and "reasoning, pass@1" in table["rows"]
