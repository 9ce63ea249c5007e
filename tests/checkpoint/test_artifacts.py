"""What a run says of its inputs, and which others it does not go on with."""

from __future__ import annotations

import hashlib
import json

import pytest

from megatron_r1.checkpoint.artifacts import Hashes, inputs_of
from megatron_r1.config.load import load_config
from megatron_r1.errors import RunDirError
from megatron_r1.telemetry.run_dir import RunDir


def test_a_run_knows_its_data_and_its_parent(tmp_path):
    examples, parent = tmp_path / "examples.jsonl", tmp_path / "parent"
    examples.write_text('{"prompt": "1", "response": "2"}\n')

    def start(*overrides: str) -> None:
        config = load_config(
            ["stage=sft", f"stage.examples={examples}", f"model.init_from={parent}",
             "stage.heldout=nowhere.jsonl", f"run.root={tmp_path}", *overrides]
        )  # fmt: skip
        RunDir(config, inputs_of(config)).close()

    RunDir(load_config(["run.name=parent", f"run.root={tmp_path}"])).close()
    assert Hashes(tmp_path / "hashes.json").of(parent) is None  # a lock and logs, no model
    checkpoint = parent / "checkpoints/step_000002"
    checkpoint.mkdir(parents=True)
    (checkpoint / "state.json").write_text("{}")
    (parent / "checkpoints/latest").write_text("step_000002")
    start()
    assert json.loads((tmp_path / "sft/manifest.json").read_text())["inputs"] == {
        "model.init_from": {
            "path": str(parent),
            "checkpoint": str(checkpoint),
            "state.json": hashlib.sha256(b"{}").hexdigest(),
        },
        "stage.examples": {
            "path": str(examples),
            "sha256": hashlib.sha256(examples.read_bytes()).hexdigest(),
        },
    }
    examples.write_text('{"prompt": "1", "response": "3"}\n')
    start()  # nothing was learned yet
    (tmp_path / "sft/metrics.jsonl").write_text('{"step": 1}\n')
    start()
    examples.unlink()
    start()  # its reader says that it is missing; what the run began with is known still
    examples.write_text('{"prompt": "1", "response": "4"}\n')
    with pytest.raises(RunDirError, match=r"stage.examples = .* is not the file that the run in "):
        start()
    start("run.overwrite=true")
