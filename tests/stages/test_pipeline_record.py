"""What a pipeline's record takes for the same step, and what it refuses; no step is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.stages.pipeline import Record
from megatron_r1.stages.steps import Step, plan_steps
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
