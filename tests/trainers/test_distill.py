"""A tiny student of a tiny teacher: from its logits and from its responses."""

from __future__ import annotations

import json

import pytest
import torch

from megatron_r1.algos.distill import distillation_loss
from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.load import load_config
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.trainers.distill import (
    DistillLoopConfig,
    train_distilled,
    with_teacher_logits,
)
from megatron_r1.trainers.job import Job
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.output_losses import on_divergence
from megatron_r1.trainers.supervised import SupervisedParts, own_share
from megatron_r1.types import TrainRow
from tests.models.builders import logits_of

pytestmark = pytest.mark.megatron

OVERRIDES = [
    "stage=distill",
    "stage.examples=samples.jsonl",
    "stage.teacher=teacher",
    "stage.examples_per_step=8",
    "stage.max_tokens=64",
    "stage.evaluate_every_steps=20",
    "optimizer.lr=3e-3",
    "optimizer.min_lr=3e-4",
    "telemetry.tensorboard=false",
    "telemetry.progress=false",
]
STUDENT = ["model=tiny_dense", "model.num_layers=1"]


def samples(count: int, vocab_size: int = 512) -> list[tuple[TrainRow, ...]]:
    """Sequences of 8 to 20 tokens; the first three are a prompt."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for _ in range(count):
        length = int(torch.randint(8, 20, (1,), generator=generator))
        tokens_L = torch.randint(0, vocab_size, (length,), generator=generator)
        rows.append((TrainRow(tokens_L=tokens_L, loss_mask_L=torch.arange(length) >= 3),))
    return rows


def teacher_of(one_rank):
    """Another shape, and weights large enough to have opinions."""
    config = load_config([*OVERRIDES, "algo=distill_logits", "model=tiny_v3", "model.init_std=0.1"])
    return one_rank.policy(config, seed=3)


def train(one_rank, run_dir, step, config, teacher, heldout=()) -> list[dict]:
    run_dir.mkdir()
    recorder = Recorder(
        run_dir, config.telemetry, label="student", first_step=0, num_steps=30, is_main=True
    )
    parts = SupervisedParts(
        megatron_step=step,
        store=CheckpointStore(run_dir, keep=1, tokenizer_dir=None),
        recorder=recorder,
        job=Job(one_rank.host),
    )
    settings = DistillLoopConfig(
        stage=config.stage, algo=config.algo, optimizer=config.optimizer, seed=1
    )
    state = train_distilled(
        parts, settings, samples(8), LoopState(), teacher=teacher, heldout=heldout
    )
    assert state.step == 30
    recorder.close()
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("interpolation", [0.0, 0.5, 1.0])
def test_a_student_comes_near_its_teachers_distribution(interpolation, one_rank, tmp_path):
    choices = ["algo=distill_logits", f"algo.interpolation={interpolation}", "stage.num_epochs=30"]
    config = load_config([*OVERRIDES, *STUDENT, *choices])
    step = MegatronStep(one_rank.policy(config), config.optimizer)
    rows = train(one_rank, tmp_path / "run", step, config, teacher_of(one_rank))
    nats = [row["distill/divergence"] for row in rows]
    assert nats[0] > 0.05
    assert nats[-1] < nats[0] / 3


def test_a_student_of_samples_learns_their_likelihood(one_rank, tmp_path):
    choices = ["algo=distill_samples", "stage.teacher=null", "stage.num_epochs=30"]
    config = load_config([*OVERRIDES, *STUDENT, *choices])
    step = MegatronStep(one_rank.policy(config), config.optimizer)
    rows = train(one_rank, tmp_path / "run", step, config, None, heldout=samples(4))
    # After 20 and at the end; four that are trained on as well, so it falls.
    measured = {row["step"]: row["heldout/nll"] for row in rows if "heldout/nll" in row}
    assert list(measured) == [20, 30] and 0 < measured[30] < measured[20] < 6
    assert rows[0]["train/nll"] > 6 and rows[-1]["train/nll"] < rows[0]["train/nll"] / 2


def test_the_divergence_is_that_of_the_two_models_logits(one_rank):
    config = load_config([*OVERRIDES, *STUDENT, "algo=distill_logits", "algo.temperature=2"])
    step = MegatronStep(one_rank.policy(config), config.optimizer)
    teacher, drawn = teacher_of(one_rank), samples(3)
    batch = with_teacher_logits(own_share(drawn, step.policy.layout.dp), teacher)
    loss = on_divergence(distillation_loss, step.policy, config.algo)
    outputs = step.accumulate_gradients(batch, loss, num_sequences=3)
    total, count = 0.0, 0
    for (row,) in drawn:
        student_LV, teacher_LV = (
            torch.log_softmax(logits_of(model, row.tokens_L, [row.num_tokens]) / 2, dim=-1)
            for model in (step.policy, teacher)
        )
        kl_L = (teacher_LV.exp() * (teacher_LV - student_LV)).sum(-1)
        # Token t is predicted at t - 1.
        total += float(kl_L[:-1][row.loss_mask_L[1:]].sum())
        count += int(row.loss_mask_L.sum())
    found = sum(float(output["train/loss"][0]) for output in outputs)
    assert found == pytest.approx(total / count, rel=1e-4)
