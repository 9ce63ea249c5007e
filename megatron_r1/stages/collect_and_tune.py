"""What stages 1 and 3 share: sample an earlier model, choose what is learned from, fine-tune."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Event
from typing import TypeVar

from megatron_r1.config.sft import CollectingConfig
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.stages.collect import first_prompts, sample_parts, while_main_works
from megatron_r1.stages.session import Session
from megatron_r1.stages.sft import fine_tune
from megatron_r1.stages.sft_set import HELDOUT, MANIFEST, TRAIN
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import Prompt

Stage = TypeVar("Stage", bound=CollectingConfig)
WriteSet = Callable[[Session, Stage, Sequence[Prompt], Path, Path, Event], str]
"""(session, stage, prompts, folder of their samples, folder of the set, given up) -> a table of
reasons; on the main rank. It writes the set."""


def collect_and_tune(
    session: Session,
    stage: Stage,
    run_dir: Path,
    init_from: Path,
    write: WriteSet[Stage],
) -> MegatronStep:
    """Do all of it, or go on where it was, in `run_dir`. Returns the model as it ended."""
    data = run_dir / "data"
    if not on_main_rank(lambda: (data / MANIFEST).is_file()):
        prompts = first_prompts(session, stage.collect, Path(stage.collect.source))
        parts = sample_parts(session, stage.collect, prompts, data / "samples")
        table = while_main_works(
            session, lambda given_up: write(session, stage, prompts, parts, data, given_up)
        )
        session.say(table)
    heldout = on_main_rank(lambda: (data / HELDOUT).stat().st_size > 0)
    return fine_tune(
        session, stage, run_dir, init_from, data / TRAIN, data / HELDOUT if heldout else None
    )
