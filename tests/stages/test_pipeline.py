"""stage=r1_pipeline: from nothing to the table; killed, started again, changed, mistaken."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.slurm.chain import plan_chain
from tests.stages.test_examples import run

pytestmark = [pytest.mark.megatron, pytest.mark.xdist_group("commands")]


def listed(items: list[str]) -> str:
    return "[" + ",".join(f'"{item}"' for item in items) + "]"


def step(overrides: list[str], inputs: dict[str, str]) -> str:
    pairs = ",".join(f"{setting}:'{source}'" for setting, source in inputs.items())
    return f"{{overrides:{listed(overrides)},inputs:{{{pairs}}}}}"


def command(root: Path, samples: Path, base_inputs: dict[str, str] | None = None) -> list[str]:
    """Base, R1-Zero and SFT, each measured; two updates of each."""
    base = ["stage=tiny_base", "stage.num_steps=1", "data.corpus_frac=0.4"]
    base += ["stage.sequences_per_step=4", "stage.num_documents=400"]
    zero = ["stage=r1_zero", "stage.num_steps=2", "stage.steps_per_phase=1"]
    zero += ["stage.prompts_per_step=2", "stage.rollouts_per_prompt=2"]
    sft = ["stage=sft", f"stage.examples={samples}", "stage.examples_per_step=2"]
    sft += ["stage.max_tokens=200", "stage.num_epochs=20", "stage.checkpoint_every_steps=4"]
    steps = {
        "base": step(base, base_inputs or {}),
        "zero": step(zero, {"model.init_from": "base"}),
        "sft": step([*sft, "optimizer.lr=1e-3"], {"model.init_from": "base"}),
    }
    small = ["model.num_layers=2", "data.num_problems=3000", "data.heldout_problems=8"]
    small += ["rollout.max_response_tokens=8"]
    suite = ["evaluation=heldout", "evaluation.suites.heldout.samples=2"]
    suite += ["evaluation.measures=[format,language,readable]"]
    return [
        "stage=r1_pipeline",
        f"+stage.steps={{{','.join(f'{name}:{settings}' for name, settings in steps.items())}}}",
        f"stage.common={listed(small)}",
        "+stage.columns={base:base,Zero:zero,Dev1:sft}",
        f"stage.evaluation={listed(suite)}",
        f"run.root={root}",
        "run.name=p",
        "telemetry.tensorboard=false",
        "telemetry.progress=false",
    ]


def decisions(output: str) -> dict[str, str]:
    found = [line.removeprefix("step ") for line in output.splitlines() if line.startswith("step ")]
    return dict(line.split(": ", 1) for line in found)


def kill_in(file: Path, *arguments: str) -> None:
    """Start a run, and end it like a lost machine as soon as this file is there."""
    process = subprocess.Popen(
        [sys.executable, "-m", "megatron_r1.train", *arguments],
        cwd=file.parents[3],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        deadline = time.monotonic() + 500
        while not file.exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def test_the_same_table_whatever_happens(tmp_path):
    samples = tmp_path / "samples.jsonl"
    lines = [json.dumps({"prompt": f"{n} + 1 =", "response": f"{n + 1}"}) for n in range(4)]
    samples.write_text("\n".join(lines) + "\n")
    kill_in(tmp_path / "killed/p/sft/metrics.jsonl", *command(tmp_path / "killed", samples))
    begun = json.loads((tmp_path / "killed/p/pipeline.json").read_text())["steps"]
    assert begun["zero"]["status"] == "done" and begun["sft"]["status"] == "begun"

    killed, whole = command(tmp_path / "killed", samples), command(tmp_path / "whole", samples)
    output = run(tmp_path, whole, killed, small=())
    first, second = output.split("exit code 0")[:2]
    assert set(decisions(first).values()) == {"begins"}
    assert decisions(second)["zero"] == "done before" and decisions(second)["sft"] == "goes on"
    tables = [
        json.loads((tmp_path / f"{name}/p/table.json").read_text()) for name in ("killed", "whole")
    ]
    assert tables[0] == tables[1] and tables[0]["columns"] == ["base", "Zero", "Dev1"]
    rows = tables[0]["rows"].values()
    assert any(len({cell["value"] for cell in row.values()}) > 1 for row in rows), "all are alike"
    assert set(tables[0]["rows"]) == {
        *("heldout, pass@1", "format", "language consistency", "readability")
    }
    assert (tmp_path / "whole/p/table.png").stat().st_size > 10_000

    # Another file: what read it runs again, and what read that. A setting: the same.
    again = [*whole, "stage.only=[zero,evaluate_zero]"]
    samples.write_text("\n".join(lines[:3]) + "\n")
    later = [*whole, '+stage.changes.evaluate_zero=["evaluation.seed=3"]']
    unfinished = [*command(tmp_path / "none", samples), "stage.only=[zero]"]
    late_input = command(tmp_path / "whole", samples, {"model.init_from": "zero"})
    wrong = [*whole, '+stage.changes.sft=["stage.no_such=1"]']
    unknown = [*whole, '+stage.changes.nothing=["run.seed=1"]']
    output = run(
        tmp_path, again, later, unfinished, late_input, wrong, unknown,
        exit_codes=(0, 0, 2, 2, 2, 2), small=(),
    )  # fmt: skip
    first, second, *refused = output.split("exit code")
    assert decisions(first) == {"zero": "done before", "evaluate_zero": "done before"}
    assert decisions(second) == {
        "base": "done before",
        "evaluate_base": "done before",
        "zero": "done before",
        "evaluate_zero": "starts over: evaluation.seed changed",
        "sft": "starts over: stage.examples changed",
        "evaluate_sft": "starts over: model.init_from changed",
    }
    assert (tmp_path / "whole/p/replaced/sft/metrics.jsonl").is_file()
    record = json.loads((tmp_path / "whole/p/pipeline.json").read_text())["steps"]
    for name in ("zero", "sft"):
        assert record[name]["inputs"]["model.init_from"] == {
            "path": str(tmp_path / "whole/p/base"),
            "sha256": record["base"]["outputs"]["model"],
            "from": "base",
        }
        assert (
            record[f"evaluate_{name}"]["inputs"]["model.init_from"]["sha256"]
            == (record[name]["outputs"]["model"])
        )
    for message in (
        "step zero: model.init_from = ",
        "is not there. Run the step base first",
        "stage.steps.base.inputs: model.init_from = 'zero' names no step before it",
        "step sft: ",
        "there is no setting stage.no_such",
        "stage.changes names nothing, which is no step",
    ):
        assert message in output, message
    assert "Traceback" not in output

    links = plan_chain([*whole, "cluster=slurm"])
    assert [link.name for link in links] == [*record]
    assert links[2].overrides[-1] == "stage.only=[zero]"


def test_the_first_job_of_a_chain_overwrites_and_the_others_go_on(tmp_path):
    whole = command(tmp_path, tmp_path / "samples.jsonl")
    links = plan_chain([*whole, "cluster=slurm", "run.overwrite=true"])
    overwrite = [load_config(link.overrides).run.overwrite for link in links]
    assert overwrite == [True, *[False] * 5]


def test_a_given_model_is_measured_once_its_problems_are_there(tmp_path):
    links = plan_chain(
        [
            *command(tmp_path, tmp_path / "samples.jsonl"),
            'stage.evaluation=["evaluation=tiny_world"]',
            "+stage.given={start:/models/start}",
            "+stage.columns.start=start",
            "+stage.evaluation_inputs={evaluation.suites.reasoning.path:'zero:problems.jsonl'}",
        ]
    )
    order = "base zero evaluate_start evaluate_base evaluate_zero sft evaluate_sft"
    assert " ".join(link.name for link in links) == order
