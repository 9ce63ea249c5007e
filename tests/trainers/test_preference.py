"""DPO on pairs that differ in a word: real updates of a tiny policy against a real reference."""

from __future__ import annotations

import json
import math
from functools import partial

import pytest
import torch

from megatron_r1.algos.dpo import dpo_pair_loss
from megatron_r1.checkpoint.record import REFERENCE
from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.load import load_config
from megatron_r1.data.examples import response_row
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.trainers.job import Job
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.micro_batches import plan_micro_batches
from megatron_r1.trainers.preference import (
    DpoLoopConfig,
    share_ordered_right,
    train_dpo,
    with_reference,
)
from megatron_r1.trainers.supervised import SupervisedParts, own_share
from megatron_r1.types import TrainBatch

pytestmark = pytest.mark.megatron

OVERRIDES = [
    "stage=dpo",
    "stage.examples=pairs.jsonl",
    "stage.examples_per_step=8",
    "stage.max_tokens=64",
    "model=tiny_dense",
    "model.num_layers=2",
    "optimizer.lr=1e-3",
    "optimizer.warmup_steps=0",
    "telemetry.tensorboard=false",
    "telemetry.progress=false",
]


def pairs(tokenizer, numbers):
    """Another number in each; tidy words are better than untidy ones."""
    return [
        tuple(
            response_row(f"{n} + {n % 7} = ", f"{word} {n * 3 % 17}", tokenizer)
            for word in ("tidy", "xyzzy")
        )
        for n in numbers
    ]


def build(one_rank, *overrides: str):
    config = load_config([*OVERRIDES, *overrides])
    step = MegatronStep(one_rank.policy(config), config.optimizer)
    bank = WeightBank(step.policy)
    bank.store(REFERENCE)
    return config, step, bank


def train(one_rank, tokenizer, run_dir, state=None, *, epochs: int = 3):
    """The metrics of every step so far, the policy, and the state as it was saved."""
    config, step, bank = build(one_rank, f"stage.num_epochs={epochs}")
    store = CheckpointStore(run_dir, keep=1, tokenizer_dir=None)
    state = LoopState()
    if store.latest() is not None:
        state = store.load(store.latest(), step.policy, step.optimizer, bank)
    run_dir.mkdir(exist_ok=True)
    recorder = Recorder(
        run_dir,
        config.telemetry,
        label="dpo",
        first_step=state.step,
        num_steps=5 * epochs,
        is_main=True,
    )
    parts = SupervisedParts(
        megatron_step=step, store=store, recorder=recorder, job=Job(one_rank.host), bank=bank
    )
    settings = DpoLoopConfig(
        stage=config.stage, algo=config.algo, optimizer=config.optimizer, seed=1
    )
    assert train_dpo(parts, settings, pairs(tokenizer, range(40)), state).step == 5 * epochs
    recorder.close()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], step, bank


def test_a_tiny_policy_learns_what_is_preferred(one_rank, tokenizer, tmp_path):
    rows, step, bank = train(one_rank, tokenizer, tmp_path / "run")
    # The policy is its reference: no reward differs from 0, and every pair costs ln 2.
    assert rows[0]["train/loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert rows[0]["preference/margin"] == pytest.approx(0, abs=1e-6)
    assert rows[-1]["preference/accuracy"] == 1
    assert rows[-1]["preference/chosen_reward"] > rows[-1]["preference/rejected_reward"] + 0.5
    assert rows[-1]["train/loss"] < 0.5
    # On numbers that it has not seen, too; and of itself the reference orders nothing.
    unseen = pairs(tokenizer, range(100, 120))
    assert share_ordered_right(unseen, step.policy, bank) == 1
    with bank.use(REFERENCE):
        assert share_ordered_right(unseen, step.policy, bank) == 0


def test_a_run_that_goes_on_keeps_its_first_reference(one_rank, tokenizer, tmp_path):
    whole, straight, _ = train(one_rank, tokenizer, tmp_path / "whole", epochs=2)
    train(one_rank, tokenizer, tmp_path / "parts", epochs=1)
    resumed, step, _ = train(one_rank, tokenizer, tmp_path / "parts", epochs=2)
    names = ("train/loss", "preference/chosen_reward", "preference/rejected_reward")
    for ours, theirs in zip(resumed, whole, strict=True):
        assert [ours[name] for name in names] == [theirs[name] for name in names]
    weights = zip(step.policy.named_parameters(), straight.policy.named_parameters(), strict=True)
    assert all(torch.equal(ours, theirs) for (_, ours), (_, theirs) in weights)


def test_loss_and_gradients_do_not_depend_on_micro_batches(one_rank, tokenizer):
    drawn = pairs(tokenizer, (1, 12, 123, 12345, 7))
    found = {}
    for capacity in (1024, 64):
        config, step, bank = build(
            one_rank, f"parallel.max_tokens_per_microbatch={capacity}", "stage.max_tokens=32"
        )
        batch = own_share(drawn, step.policy.layout.dp)
        with torch.no_grad():  # a reference that is another model than the policy
            for _, weight in step.policy.named_parameters():
                weight.mul_(1.05)
        batch = with_reference(batch, step.policy, bank)
        loss = step.on_logprobs(partial(dpo_pair_loss, config=config.algo, num_pairs=5))
        outputs = step.accumulate_gradients(batch, loss, num_sequences=10)
        total = sum(float(output["train/loss"][0]) for output in outputs)
        gradients = {n: w.main_grad.clone() for n, w in step.policy.named_parameters()}
        found[capacity] = total, gradients, len(outputs)
    assert found[1024][2] == 1 < found[64][2]
    assert found[64][0] == pytest.approx(found[1024][0], rel=1e-5)
    for name, whole in found[1024][1].items():
        gap = (found[64][1][name] - whole).abs().max()
        assert gap <= 1e-4 * whole.abs().max(), f"{name}: {gap:.1e}"


def test_a_pair_stays_together_whatever_its_lengths(one_rank, tokenizer):
    _, step, _ = build(one_rank, "parallel.max_tokens_per_microbatch=64", "stage.max_tokens=32")
    drawn = pairs(tokenizer, range(6))
    rows = tuple(row for pair in drawn for row in pair)
    bins = plan_micro_batches(step.policy, TrainBatch(rows=rows, rows_together=2))
    assert len(bins) > 1
    for members in bins:
        assert members[1::2] == [first + 1 for first in members[::2]]
        assert all(first % 2 == 0 for first in members[::2])
