"""Distillation (arXiv:2501.12948v2 B.4.3) on a file of a teacher's responses."""

from __future__ import annotations

from pathlib import Path

from megatron_r1.checkpoint.hf_coverage import is_hf_directory
from megatron_r1.checkpoint.hf_weights import HfWeights
from megatron_r1.checkpoint.record import read_state, resolve_checkpoint, saved_config
from megatron_r1.config.checks.layout import check_model_fits_degrees
from megatron_r1.config.model import ModelConfig
from megatron_r1.config.stage import DistillConfig
from megatron_r1.data.examples import Example
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.errors import ConfigError
from megatron_r1.models.policy import Policy
from megatron_r1.stages.session import Session, check_not_past
from megatron_r1.stages.sft import sample_rows
from megatron_r1.trainers.distill import DistillLoopConfig, train_distilled
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.supervised import SupervisedParts


def run_distill(
    session: Session, stage: DistillConfig, run_dir: Path, init_from: Path
) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the student as it ended."""
    config = session.config
    tokenizer = session.tokenizer(init_from)

    def rows_of(path: str) -> list[Example]:
        rows = sample_rows(session, Path(path), tokenizer)
        return session.without_long(rows, path, max_tokens=stage.max_tokens)

    samples = rows_of(stage.examples)
    heldout = [] if stage.heldout is None else rows_of(stage.heldout)
    num_steps = stage.num_steps(len(samples))
    teacher = None
    if stage.teacher is not None:
        teacher = open_teacher(session, Path(stage.teacher), tokenizer)
    mtp_loss = config.model.mtp_loss if teacher is None else 0.0
    student = session.megatron_step(tokenizer, config.optimizer, mtp_loss=mtp_loss)
    store = session.store(run_dir, stage, tokenizer)
    state = session.begin(store, student, init_from)
    check_not_past(state.step, num_steps, run_dir)
    with session.recorder(
        run_dir, "distill", first_step=state.step, num_steps=num_steps
    ) as recorder:
        train_distilled(
            SupervisedParts(megatron_step=student, store=store, recorder=recorder, job=session.job),
            DistillLoopConfig(
                stage=stage, algo=config.algo, optimizer=config.optimizer, seed=config.run.seed
            ),
            samples,
            state,
            teacher=teacher,
            heldout=heldout,
        )
    return student


def open_teacher(session: Session, path: Path, tokenizer: Tokenizer) -> Policy:
    """A second model in the student's layout, of any size, with the student's vocabulary."""
    own_tokenizer = session.tokenizer_of(path)
    if not own_tokenizer.has_vocabulary_of(tokenizer):
        raise ConfigError(
            f"stage.teacher = {path} has another vocabulary ({own_tokenizer.vocab_size} ids) than "
            f"the student's tokenizer {tokenizer.path} ({tokenizer.vocab_size} ids), and a "
            "divergence compares the same tokens. Choose another teacher, or learn from its "
            "responses alone: algo=distill_samples"
        )
    model = teacher_model(path)
    own, config = model.vocab_size, session.config
    if own != config.model.vocab_size:
        raise ConfigError(
            f"stage.teacher = {path} has {own} columns in its vocabulary and the student "
            f"model.vocab_size = {config.model.vocab_size}. Choose a teacher of as many"
        )
    check_model_fits_degrees(model, config.parallel, config.precision)
    teacher = Policy(model, session.layout, config.precision, session.host, seed=config.run.seed)
    session.load(teacher, path)
    return teacher


def teacher_model(path: Path) -> ModelConfig:
    """What a checkpoint says of its model."""
    if is_hf_directory(path):
        return HfWeights(path).config
    checkpoint = resolve_checkpoint(path)
    return saved_config(checkpoint, read_state(checkpoint))
