"""Checkpoints without a run around them: what is kept, what is refused, what comes back."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from megatron_r1.algos.sft import sft_loss
from megatron_r1.checkpoint.artifacts import Hashes
from megatron_r1.checkpoint.record import REFERENCE, model_identity, read_state, resolve_checkpoint
from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.load import load_config
from megatron_r1.config.model import RopeConfig, RopeScaling
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.errors import CheckpointError
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import TrainBatch, TrainRow

pytestmark = pytest.mark.megatron

ROW = TrainRow(tokens_L=torch.arange(9), loss_mask_L=torch.arange(9) > 0, weight=1 / 8)


@pytest.fixture
def trained(one_rank) -> MegatronStep:
    """Two updates from random weights."""
    step = MegatronStep(one_rank.policy(load_config(["model=tiny_v3"])), OptimizerConfig(lr=1e-3))
    update(step)
    update(step)
    return step


def update(step: MegatronStep) -> dict[str, float]:
    return dict(
        step.train_step(
            TrainBatch((ROW,)), step.on_logprobs(sft_loss), lr=1e-3, num_sequences=1
        ).metrics
    )


def weights(step: MegatronStep) -> dict[str, torch.Tensor]:
    tensors = {
        **dict(step.policy.named_parameters()),
        **dict(step.policy.named_buffers()),
    }
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def save(step: MegatronStep, store: CheckpointStore, number: int, bank: WeightBank | None = None):
    state = LoopState(step=number, prompts_drawn=10 * number)
    return store.save(state, step.policy, step.optimizer, bank)


def test_training_goes_on_bit_for_bit_and_the_reference_comes_back(trained, one_rank, tmp_path):
    bank = WeightBank(trained.policy)
    bank.store(REFERENCE)
    reference = weights(trained)
    update(trained)
    store = CheckpointStore(tmp_path, keep=2, tokenizer_dir=None)
    path = save(trained, store, 3, bank)
    went_on = update(trained), weights(trained)

    fresh = MegatronStep(
        one_rank.policy(load_config(["model=tiny_v3"]), seed=99), OptimizerConfig(lr=1e-3)
    )
    fresh_bank = WeightBank(fresh.policy)
    state = store.load(path, fresh.policy, fresh.optimizer, fresh_bank)
    assert state == LoopState(step=3, prompts_drawn=30)
    with fresh_bank.use(REFERENCE):
        for name, tensor in weights(fresh).items():
            if "local_tokens" not in name:  # a count of the current step, not part of the model
                assert torch.equal(tensor, reference[name]), name
    resumed = update(fresh), weights(fresh)
    assert resumed[0] == went_on[0]
    assert all(torch.equal(resumed[1][name], went_on[1][name]) for name in went_on[1])


def test_the_same_state_is_the_same_artifact(trained, tmp_path):
    """Wherever and whenever it was written: a pipeline runs again what changed, no more."""
    hashes = []
    for name in ("one", "other"):
        save(trained, CheckpointStore(tmp_path / name, keep=1, tokenizer_dir=None), 2)
        hashes.append(Hashes(tmp_path / "hashes.json").of(tmp_path / name))
    assert hashes[0] == hashes[1] is not None
    update(trained)
    save(trained, CheckpointStore(tmp_path / "other", keep=1, tokenizer_dir=None), 3)
    assert Hashes(tmp_path / "hashes.json").of(tmp_path / "other") != hashes[0]


def test_what_is_written_in_the_background_is_the_state_of_its_step(trained, one_rank, tmp_path):
    """Training goes on while it is written; the checkpoint before stays the latest until then."""
    store = CheckpointStore(tmp_path, keep=1, tokenizer_dir=None, in_background=True)
    first = save(trained, store, 1)
    store.poll(wait=True)
    assert store.latest() == first
    path = save(trained, store, 2)
    at_save = weights(trained)
    assert store.latest() == first and not path.exists()
    went_on = update(trained)
    store.poll(wait=True)
    assert store.latest() == path and not first.exists()

    fresh = MegatronStep(
        one_rank.policy(load_config(["model=tiny_v3"]), seed=99), OptimizerConfig(lr=1e-3)
    )
    assert store.load(path, fresh.policy, fresh.optimizer).step == 2
    assert all(torch.equal(at_save[n], w) for n, w in weights(fresh).items() if "local" not in n)
    assert update(fresh) == went_on


def test_a_failure_in_the_background_is_reported_at_the_next_step(trained, tmp_path):
    store = CheckpointStore(tmp_path, keep=2, tokenizer_dir=None, in_background=True)
    first = save(trained, store, 1)
    store.poll(wait=True)
    path = save(trained, store, 2)
    (partial,) = (tmp_path / "checkpoints").glob(".partial_*")
    shutil.rmtree(partial)  # whatever takes the files away
    with pytest.raises(CheckpointError, match=f"step 2 could not be .* {first} is whole"):
        store.poll(wait=True)
    assert store.latest() == first and not path.exists()
    store.poll()  # said once
    save(trained, store, 3)
    store.poll(wait=True)
    assert store.latest().name == "step_000003"


def test_all_is_on_the_disk_before_it_has_its_name_and_latest_follows(
    trained, tmp_path, monkeypatch
):
    """The order of the system calls, which no kill can show: a power cut can."""
    calls: list[tuple[str, str]] = []

    def spy(owner, name: str, path_of) -> None:
        real = getattr(owner, name)

        def call(*args):
            calls.append((name, path_of(args[0])))
            return real(*args)

        monkeypatch.setattr(owner, name, call)

    spy(os, "fsync", lambda descriptor: os.readlink(f"/proc/self/fd/{descriptor}"))
    for name in ("rename", "replace"):
        spy(os, name, lambda path: os.fspath(path))
    final = save(trained, CheckpointStore(tmp_path, keep=1, tokenizer_dir=None), 7)

    def only(name: str, file_name: str) -> int:
        (index,) = (
            index
            for index, (called, path) in enumerate(calls)
            if called == name and Path(path).name.startswith(file_name)
        )
        return index

    renamed, pointed = only("rename", ".partial_step_000007"), only("replace", ".latest.")
    partial, draft = Path(calls[renamed][1]), calls[pointed][1]
    flushed = {path for name, path in calls[:renamed] if name == "fsync"}
    written = {str(partial / path.relative_to(final)) for path in final.rglob("*")}
    assert len(written) > 4 and written | {str(partial)} <= flushed
    assert renamed < calls.index(("fsync", draft)) < pointed
    assert ("fsync", str(tmp_path / "checkpoints")) in calls[renamed:pointed]


def test_the_last_ones_are_kept_and_the_newest_is_named(trained, tmp_path):
    store = CheckpointStore(tmp_path, keep=2, tokenizer_dir=None)
    for number in (1, 2, 3):
        save(trained, store, number)
    left = sorted(path.name for path in (tmp_path / "checkpoints").glob("*"))
    assert left == ["latest", "step_000002", "step_000003"]
    assert store.latest() == resolve_checkpoint(tmp_path) == tmp_path / "checkpoints/step_000003"


def test_only_the_tokenizers_own_files_are_carried_along(trained, tmp_path):
    source = tmp_path / "hf_model"
    source.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "model.safetensors"):
        (source / name).write_text(name)
    path = save(trained, CheckpointStore(tmp_path / "run", keep=1, tokenizer_dir=source), 1)
    carried = sorted(file.name for file in (path / "tokenizer").iterdir())
    assert carried == ["tokenizer.json", "tokenizer_config.json"]


def test_a_missing_file_and_a_missing_directory_are_named(trained, tmp_path):
    store = CheckpointStore(tmp_path, keep=1, tokenizer_dir=None)
    path = save(trained, store, 1)
    listed = json.loads((path / "state.json").read_text())["files"]
    assert all((path / name).stat().st_size == size for name, size in listed.items())
    (path / "policy/metadata.json").unlink()
    with pytest.raises(CheckpointError, match="policy/metadata.json is missing"):
        read_state(path)
    (tmp_path / "checkpoints/latest").write_text("step_000009\n")
    with pytest.raises(CheckpointError, match="names 'step_000009', which is not there"):
        store.latest()


@pytest.mark.parametrize(
    ("loop", "message"),
    [
        ({"step": 1}, "loop is damaged: it lacks prompts_drawn"),
        ({"step": "1", "prompts_drawn": 0}, "loop.step is damaged: '1' instead of a whole number"),
        ({"step": 1, "prompts_drawn": 0, "x": 1}, "loop is damaged: nothing is called x"),
        ({"step": 1, "prompts_drawn": 0, "watched": 5}, "loop.watched is damaged: 5 instead"),
        (
            {"step": 1, "prompts_drawn": 0, "watched": [[]]},
            r"loop.watched is damaged: \[\] inst",
        ),
    ],
)
def test_damaged_counters_are_not_resumed_from(loop, message, trained, tmp_path):
    store = CheckpointStore(tmp_path, keep=1, tokenizer_dir=None)
    path = save(trained, store, 1)
    record = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**record, "loop": loop}))
    with pytest.raises(CheckpointError, match=message):
        store.load(path, trained.policy, trained.optimizer)


def test_rope_settings_that_its_scaling_does_not_read_tell_no_models_apart():
    def identity(**rope):
        config = load_config(["model=tiny_dense"]).model
        return model_identity(dataclasses.replace(config, rope=RopeConfig(**rope)))

    none, yarn = RopeScaling.none, RopeScaling.yarn
    assert identity(scaling=none, factor=4.0) == identity(scaling=none, factor=2.0)
    assert identity(scaling=yarn, factor=4.0) != identity(scaling=yarn, factor=2.0)
    assert identity(scaling=yarn, high_freq_factor=8.0) == identity(scaling=yarn)
