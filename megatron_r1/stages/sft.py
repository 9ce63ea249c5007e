"""Supervised fine-tuning of a model on samples (arXiv:2501.12948v2 B.4.2)."""

from __future__ import annotations

from pathlib import Path

from megatron_r1.config.sft import SftConfig
from megatron_r1.data.examples import Example, response_row
from megatron_r1.data.samples import read_samples
from megatron_r1.data.templates import render
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.stages.example_files import read_examples
from megatron_r1.stages.session import Session, check_not_past
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.sft import train_sft
from megatron_r1.trainers.supervised import SupervisedParts


def run_sft(session: Session, stage: SftConfig, run_dir: Path, init_from: Path) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the model as it ended."""
    heldout = None if stage.heldout is None else Path(stage.heldout)
    return fine_tune(session, stage, run_dir, init_from, Path(stage.examples), heldout)


def fine_tune(
    session: Session,
    stage: SftConfig,
    run_dir: Path,
    init_from: Path,
    samples: Path,
    heldout: Path | None,
) -> MegatronStep:
    """The same, on files that a stage has made or was given."""
    config = session.config
    tokenizer = session.tokenizer(init_from)

    def rows_of(path: Path, *, may_be_none: bool) -> list[Example]:
        rows = sample_rows(session, path, tokenizer)
        return session.without_long(
            rows, str(path), max_tokens=stage.max_tokens, may_be_none=may_be_none
        )

    train = rows_of(samples, may_be_none=False)
    # A stage that splits its samples by chance may hold out none but long ones.
    held_out = [] if heldout is None else rows_of(heldout, may_be_none=True)
    num_steps = stage.num_steps(len(train))
    model = session.megatron_step(tokenizer, config.optimizer, mtp_loss=config.model.mtp_loss)
    store = session.store(run_dir, stage, tokenizer)
    state = session.begin(store, model, init_from)
    check_not_past(state.step, num_steps, run_dir)
    with session.recorder(
        run_dir, stage.name, first_step=state.step, num_steps=num_steps
    ) as recorder:
        parts = SupervisedParts(
            megatron_step=model, store=store, recorder=recorder, job=session.job
        )
        train_sft(parts, stage, config.optimizer, train, held_out, state, seed=config.run.seed)
    return model


def sample_rows(session: Session, path: Path, tokenizer: Tokenizer) -> list[Example]:
    """One row for each sample of a file."""
    template = session.config.data.template
    return [
        (response_row(render(template, sample.prompt), sample.response, tokenizer),)
        for sample in read_examples(session, read_samples, path)
    ]
