"""stage=dpo, stage=distill and algo=ppo as a user starts them, one after another in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from megatron_r1.checkpoint.inspection import describe
from megatron_r1.data.preferences import PreferencePair, write_preferences

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("commands")]

DRIVER = """
import json, sys
from megatron_r1.train import main
if __name__ == "__main__":
    for overrides in json.loads(sys.argv[1]):
        print("exit code", main(overrides), flush=True)
"""
SMALL = [
    "model.num_layers=2",
    "data.num_problems=3000",
    "data.heldout_problems=8",
    "data.max_prompt_tokens=64",
    "rollout.max_response_tokens=8",
    "telemetry.tensorboard=false",
    "telemetry.progress=false",
]


def run(
    root: Path,
    *commands: list[str],
    exit_codes: Sequence[int] = (),
    small: Sequence[str] = SMALL,
) -> str:
    """What the runs print, each of which must end well, or as `exit_codes` say."""
    (root / "driver.py").write_text(DRIVER)
    done = subprocess.run(
        [
            *(sys.executable, "driver.py"),
            json.dumps([[*small, f"run.root={root}", *command] for command in commands]),
        ],
        cwd=root,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    output = done.stdout + done.stderr
    found = [line.split()[-1] for line in done.stdout.splitlines() if "exit code" in line]
    assert found == [str(code) for code in exit_codes or [0] * len(commands)], output[-6000:]
    return output


def metrics(run_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def test_stages_train_save_and_go_on(tmp_path):
    pairs = [PreferencePair(f"{n} + 1 =", f"<answer>{n + 1}", "no idea") for n in range(12)]
    write_preferences(tmp_path / "pairs.jsonl", [*pairs, PreferencePair("1" * 99, "1", "2")])
    write_preferences(tmp_path / "heldout.jsonl", pairs[:4])
    (tmp_path / "samples.jsonl").write_text(
        "".join(json.dumps({"prompt": p.prompt, "response": p.chosen}) + "\n" for p in pairs)
    )
    base = ["stage=tiny_base", "run.name=base", "stage.num_steps=1", "data.corpus_frac=0.4"]
    base += ["stage.sequences_per_step=4", "stage.num_documents=400"]
    init = f"model.init_from={tmp_path}/base"
    dpo = ["stage=dpo", "run.name=dpo", init, f"stage.examples={tmp_path}/pairs.jsonl"]
    dpo += ["stage.examples_per_step=6", "stage.max_tokens=64", "optimizer.lr=1e-3"]
    dpo += [f"stage.heldout={tmp_path}/heldout.jsonl", "optimizer.warmup_steps=0"]
    distill = ["stage=distill", "algo=distill_logits", init, "run.name=distill"]
    distill += [f"stage.examples={tmp_path}/samples.jsonl", f"stage.teacher={tmp_path}/dpo"]
    distill += ["stage.examples_per_step=6", "stage.num_epochs=1", "stage.max_tokens=64"]
    distill += [f"stage.heldout={tmp_path}/samples.jsonl"]
    long = {"prompt": "1" * 99, "response": "2"}
    (tmp_path / "long.jsonl").write_text(json.dumps(long) + "\n")
    sft = ["stage=sft", init, "run.name=sft", "stage.max_tokens=64", "stage.num_epochs=1"]
    sft += [f"stage.examples={tmp_path}/samples.jsonl", "stage.examples_per_step=6"]
    sft += [f"stage.heldout={tmp_path}/long.jsonl"]
    write_preferences(tmp_path / "bad.jsonl", [PreferencePair("1" * 99, "1", "2")])
    unheld = [*dpo, "run.name=unheld", f"stage.heldout={tmp_path}/bad.jsonl"]
    ppo = ["stage=r1_zero", "algo=ppo", init, "run.name=ppo", "stage.prompts_per_step=1"]
    ppo += ["stage.rollouts_per_prompt=2", "stage.steps_per_phase=1"]
    output = run(
        tmp_path,
        base,
        dpo,
        [*dpo, "stage.num_epochs=3"],
        distill,
        [*ppo, "stage.num_steps=1"],
        [*ppo, "stage.num_steps=2"],
        sft,
        unheld,
        exit_codes=(0, 0, 0, 0, 0, 0, 0, 2),
    )
    # Samples that are held out by chance may all be too long; a file that was named is an error
    # before the first update, not after the last one.
    assert "1 of 1 examples" in output and len(metrics(tmp_path / "sft")) == 2
    assert not (tmp_path / "unheld/metrics.jsonl").exists()
    assert "1 of 13 examples" in output and "were dropped" in output
    assert "dpo: resuming after step 2" in output and "r1_zero: resuming after step 1" in output
    # 12 pairs, 6 a step: 2 steps an epoch.
    assert [row["step"] for row in metrics(tmp_path / "dpo")] == [1, 2, 3, 4, 5, 6]
    result = json.loads((tmp_path / "dpo/eval/pairs.json").read_text())
    assert result == {"step": 6, "pairs": 4, "ordered_right": 1.0}
    assert (tmp_path / "dpo/checkpoints/step_000006/reference").is_dir()
    # The teacher is the student after six updates: not far away, and not the same.
    first = metrics(tmp_path / "distill")[0]
    assert 0 < first["distill/divergence"] < 1
    assert metrics(tmp_path / "distill")[-1]["heldout/nll"] > 0
    # The critic is saved with the policy, and its optimizer goes on.
    held = describe(tmp_path / "ppo")
    assert "critic: weights" in held and "critic: optimizer state" in held
    assert [row["critic/skipped"] for row in metrics(tmp_path / "ppo")] == [0, 0]
