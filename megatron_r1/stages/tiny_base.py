"""A tiny base model from a noisy synthetic corpus: something for RL to sharpen."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from megatron_r1.algos.sft import sft_loss
from megatron_r1.checkpoint.store import LoopState
from megatron_r1.config.stage import TinyBaseConfig
from megatron_r1.data.corpus import write_corpus
from megatron_r1.data.examples import Example, response_row
from megatron_r1.data.prompts import open_corpus
from megatron_r1.data.samples import read_samples
from megatron_r1.data.templates import render
from megatron_r1.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.stages.example_files import read_examples
from megatron_r1.stages.session import Session, check_not_past
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.supervised import (
    SupervisedParts,
    Update,
    own_share,
    train_supervised,
)


def run_tiny_base(session: Session, stage: TinyBaseConfig, run_dir: Path) -> MegatronStep:
    """Train, or go on training, in `run_dir`. Returns the model as it ended."""
    config = session.config
    documents = corpus(session, stage)
    tokenizer = tiny_tokenizer(
        documents, run_dir / "tokenizer", config.model.vocab_size, split_words=stage.split_words
    )
    megatron_step = session.megatron_step(
        tokenizer, stage.optimizer, mtp_loss=config.model.mtp_loss
    )
    store = session.store(run_dir, stage, tokenizer)
    latest = store.latest()
    state = LoopState()
    if latest is not None:
        state = store.load(latest, megatron_step.policy, megatron_step.optimizer)
        check_not_past(state.step, stage.num_steps, run_dir)
    if state.step >= stage.num_steps:
        return megatron_step
    examples = [(response_row(prompt, response, tokenizer),) for prompt, response in documents]
    loss = megatron_step.on_logprobs(sft_loss)
    with session.recorder(
        run_dir, "tiny_base", first_step=state.step, num_steps=stage.num_steps
    ) as recorder:

        def update_of(step: int) -> Update:
            chosen = draw_at_random(examples, stage.sequences_per_step, (config.run.seed, step))
            batch = own_share(chosen, session.layout.dp)
            return Update(batch=batch, loss=loss, num_sequences=len(chosen))

        train_supervised(
            SupervisedParts(
                megatron_step=megatron_step, store=store, recorder=recorder, job=session.job
            ),
            stage,
            stage.optimizer,
            state,
            num_steps=stage.num_steps,
            update_of=update_of,
        )
    return megatron_step


def corpus(session: Session, stage: TinyBaseConfig) -> list[tuple[str, str]]:
    """Prompt and response of every document; the same on every rank.

    Without a file of them, a problem returns with another response in each epoch, until there are
    `stage.num_documents`.
    """
    config = session.config
    if stage.documents is not None:
        samples = read_examples(session, read_samples, stage.documents)
        return [(render(config.data.template, s.prompt), s.response) for s in samples]
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
    documents: Sequence[tuple[str, str]],
    directory: Path,
    vocab_size: int,
    *,
    split_words: bool = False,
) -> Tokenizer:
    """A small byte-level BPE, trained once by the main rank and kept beside the run."""

    def train() -> None:
        if directory.is_dir():
            return
        draft = directory.with_name(f".{directory.name}.partial")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        texts = [text for document in documents for text in document]
        train_tokenizer(texts, vocab_size=vocab_size, directory=draft, split_words=split_words)
        draft.rename(directory)

    on_main_rank(train)
    return load_tokenizer(directory)


def draw_at_random(examples: Sequence[Example], count: int, seed: tuple[int, int]) -> list[Example]:
    """`count` documents, none twice in a step; keyed by seed and step."""
    chosen = np.random.default_rng(seed).choice(
        len(examples), size=min(count, len(examples)), replace=False
    )
    return [examples[index] for index in chosen.tolist()]
