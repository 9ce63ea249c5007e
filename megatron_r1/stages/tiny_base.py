"""A tiny base model from a noisy synthetic corpus: something for RL to sharpen."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from megatron_r1.algos.sft import sft_loss
from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.stage import TinyBaseConfig
from megatron_r1.data.corpus import write_corpus
from megatron_r1.data.packing import balance_rows
from megatron_r1.data.prompts import open_corpus
from megatron_r1.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.parallel.layout import Axis
from megatron_r1.stages.session import Session, check_not_past
from megatron_r1.trainers.job import stop_if_asked
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.schedule import learning_rate
from megatron_r1.types import TrainBatch, TrainRow


def run_tiny_base(session: Session, stage: TinyBaseConfig, run_dir: Path) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the model as it ended."""
    config = session.config
    documents = corpus(session, stage)
    tokenizer = tiny_tokenizer(documents, run_dir / "tokenizer", config.model.vocab_size)
    megatron_step = session.megatron_step(
        tokenizer, stage.optimizer, mtp_loss=config.model.mtp_loss
    )
    store = CheckpointStore(
        run_dir,
        keep=stage.keep_checkpoints,
        tokenizer_dir=Path(tokenizer.path),
        in_background=stage.background_checkpoints,
    )
    latest = store.latest()
    state = LoopState()
    if latest is not None:
        state = store.load(latest, megatron_step.policy, megatron_step.optimizer)
        check_not_past(state.step, stage.num_steps, run_dir)
    if state.step >= stage.num_steps:
        return megatron_step
    rows = [document_row(prompt, response, tokenizer) for prompt, response in documents]
    with session.recorder(
        run_dir, "tiny_base", first_step=state.step, num_steps=stage.num_steps
    ) as recorder:
        for step in range(state.step, stage.num_steps):
            stop_if_asked(session.job, store, state, megatron_step)
            chosen = draw_rows(rows, stage.sequences_per_step, (config.run.seed, step))
            with recorder.timed("time/update_s"):
                result = megatron_step.train_step(
                    own_share(chosen, session.layout.dp),
                    sft_loss,
                    lr=learning_rate(step, stage.num_steps, stage.optimizer),
                    num_sequences=len(chosen),
                )
            recorder.step(step + 1, result)
            session.job.step_made(step + 1)
            store.poll()
            state = LoopState(step=step + 1)
            if (step + 1) % stage.checkpoint_every_steps == 0 or step + 1 == stage.num_steps:
                with session.job.checkpointing():
                    store.save(state, megatron_step.policy, megatron_step.optimizer)
        with session.job.checkpointing():
            store.poll(wait=True)
    session.job.between_loops()
    return megatron_step


def corpus(session: Session, stage: TinyBaseConfig) -> list[tuple[str, str]]:
    """Prompt and response of every document; the same on every rank.

    A problem returns with another response in each epoch, until there are `stage.num_documents`.
    """
    config = session.config
    problems = open_corpus(config.data)
    epochs = -(-stage.num_documents // len(problems))
    documents = [
        document
        for epoch in range(epochs)
        for document in write_corpus(
            problems,
            config=stage.corpus,
            seed=config.run.seed * epochs + epoch,
            template=config.data.template,
        )
    ]
    return documents[: stage.num_documents]


def tiny_tokenizer(
    documents: Sequence[tuple[str, str]], directory: Path, vocab_size: int
) -> Tokenizer:
    """A small byte-level BPE, trained once by the main rank and kept beside the run."""

    def train() -> None:
        if directory.is_dir():
            return
        draft = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        texts = [text for document in documents for text in document]
        train_tokenizer(texts, vocab_size=vocab_size, directory=draft)
        draft.rename(directory)

    on_main_rank(train)
    return load_tokenizer(directory)


def document_row(prompt: str, response: str, tokenizer: Tokenizer) -> TrainRow:
    """Prompt, response and end of sequence; the loss is taken on what comes after the prompt."""
    prompt_ids = tokenizer.encode(prompt)
    response_ids = (*tokenizer.encode(response), tokenizer.eos_id)
    tokens_L = torch.tensor(prompt_ids + response_ids)
    return TrainRow(tokens_L=tokens_L, loss_mask_L=torch.arange(len(tokens_L)) >= len(prompt_ids))


def draw_rows(rows: Sequence[TrainRow], count: int, seed: tuple[int, int]) -> list[TrainRow]:
    """`count` documents at random, none twice in a step; keyed by seed and step."""
    chosen = np.random.default_rng(seed).choice(
        len(rows), size=min(count, len(rows)), replace=False
    )
    return [rows[index] for index in chosen.tolist()]


def own_share(rows: Sequence[TrainRow], dp: Axis) -> TrainBatch:
    """This replica's rows of a step; the loss is a mean over all response tokens of the step."""
    weight = 1.0 / sum(int(row.loss_mask_L.sum()) for row in rows)
    share = balance_rows([row.num_tokens for row in rows], dp.size)[dp.rank]
    return TrainBatch(rows=tuple(dataclasses.replace(rows[i], weight=weight) for i in share))
