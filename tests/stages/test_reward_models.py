"""stage=rm_helpful, stage=rm_safety and RL with both as a user starts them, in one process."""

from __future__ import annotations

import json

import pytest

from megatron_r1.data.preferences import PreferencePair, write_preferences
from tests.stages.test_examples import metrics, run

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("commands")]


def lines(records: list[dict]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def test_both_train_resume_and_score_in_rl(tmp_path):
    pairs = [PreferencePair(f"{n} + 1 =", f"<answer>{n + 1}", "no idea") for n in range(12)]
    write_preferences(tmp_path / "pairs.jsonl", [*pairs, PreferencePair("1" * 99, "1", "2")])
    write_preferences(tmp_path / "heldout.jsonl", pairs[:4])
    labelled = [
        {"prompt": f"{n} =", "response": "no" * (n % 2) + "7", "safe": n % 2 == 0} for n in range(8)
    ]
    (tmp_path / "labelled.jsonl").write_text(lines(labelled))
    datasets = ("helpfulness", "harmlessness")
    general = [{"question": f"{n} =", "answer": "1", "dataset": datasets[n % 2]} for n in range(8)]
    (tmp_path / "prompts.jsonl").write_text(lines(general))

    base = ["stage=tiny_base", "run.name=base", "stage.num_steps=1", "data.corpus_frac=0.4"]
    base += ["stage.sequences_per_step=4", "stage.num_documents=400"]
    init = f"model.init_from={tmp_path}/base"
    common = [init, "stage.max_tokens=64", "optimizer.lr=1e-3", "stage.num_epochs=2"]
    helpful = ["stage=rm_helpful", "run.name=helpful", *common, "stage.examples_per_step=6"]
    helpful += [f"stage.examples={tmp_path}/pairs.jsonl", "stage.evaluate_every_steps=3"]
    helpful += [f"stage.heldout={tmp_path}/heldout.jsonl", "stage.margin_weight=1"]
    safety = ["stage=rm_safety", "run.name=safety", *common, "stage.examples_per_step=8"]
    safety += [f"stage.examples={tmp_path}/labelled.jsonl"]
    safety += [f"stage.heldout={tmp_path}/labelled.jsonl"]
    rl = ["stage=r1_zero", "run.name=rl", init, "stage.num_steps=2", "stage.steps_per_phase=1"]
    rl += ["data=jsonl", f"data.path={tmp_path}/prompts.jsonl", "data.heldout_problems=0"]
    rl += ["stage.prompts_per_step=4", "stage.rollouts_per_prompt=2", "reward=r1_stage4"]
    rl += [f"reward.models.helpful={tmp_path}/helpful", "+reward.schedules.helpful={1:1.0}"]
    rl += [f"reward.models.safety={tmp_path}/safety", "+reward.schedules.safety={0:1.0}"]
    refused = [*rl, "run.name=refused", f"reward.models.safety={tmp_path}/base"]
    more = [*helpful, "stage.num_epochs=3"]
    codes = (0, 0, 0, 0, 0, 2)
    output = run(tmp_path, base, helpful, more, safety, rl, refused, exit_codes=codes)

    assert "1 of 13 examples" in output and "rm_helpful: resuming after step 4" in output
    rows = metrics(tmp_path / "helpful")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]
    assert [row["step"] for row in rows if "heldout/accuracy" in row] == [3, 4, 6]
    result = json.loads((tmp_path / "helpful/eval/heldout.json").read_text())
    assert result["step"] == 6 and result["examples"] == 4
    assert result["accuracy"] == rows[-1]["heldout/accuracy"] == 1.0
    assert "rm_safety: 8 held-out examples: accuracy" in output
    # Four prompts a phase, two of each kind; helpfulness counts from the second update on.
    first, second = metrics(tmp_path / "rl")
    assert "reward/helpful" not in first and "reward/safety" in first
    assert "reward/helpful" in second and "reward/safety" in second
    rollouts = (tmp_path / "rl/rollouts/step_000002.jsonl").read_text()
    assert "base is a language model, and a reward model is asked for" in output
    assert "model helpful on" in rollouts and "model safety on its response" in rollouts
