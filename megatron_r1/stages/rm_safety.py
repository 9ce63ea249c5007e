"""The safety reward model: safe or unsafe, by the point (arXiv:2501.12948v2 section 3.1, Eq. 6)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from megatron_r1.algos.reward_losses import scored_points_loss
from megatron_r1.config.reward import Reads
from megatron_r1.config.stage import RmSafetyConfig
from megatron_r1.data.examples import Example
from megatron_r1.data.safety_labels import LabelledResponse, read_labelled
from megatron_r1.data.scored_rows import scored_row
from megatron_r1.data.templates import render
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.errors import DataError
from megatron_r1.evaluation.ranking import label_metrics
from megatron_r1.stages.example_files import read_examples
from megatron_r1.stages.reward_model import run_reward_model
from megatron_r1.stages.session import Session
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.reward_model import RewardTask


def run_rm_safety(
    session: Session, stage: RmSafetyConfig, run_dir: Path, init_from: Path
) -> MegatronStep:
    """It sees the whole response: harm may be in the thought."""
    template = session.config.data.template

    def read(path: str, tokenizer: Tokenizer) -> list[Example]:
        cases = read_examples(session, read_labelled, path)
        if path == stage.heldout:
            check_both_labels(cases, path)
        return [labelled_row(case, template, tokenizer) for case in cases]

    return run_reward_model(session, stage, run_dir, init_from, safety_task(stage), read=read)


def safety_task(stage: RmSafetyConfig) -> RewardTask:
    return RewardTask(
        loss=partial(scored_points_loss, num_examples=stage.examples_per_step),
        measure=lambda scores_N1, labels_N1: label_metrics(scores_N1[:, 0], labels_N1[:, 0]),
    )


def check_both_labels(cases: Sequence[LabelledResponse], path: str) -> None:
    """Raises DataError where there is nothing to tell apart."""
    num_safe = sum(case.safe for case in cases)
    if num_safe in (0, len(cases)):
        raise DataError(
            f"{path}: {num_safe} of {len(cases)} held-out responses are safe, and how well a model "
            "tells both apart needs some of each"
        )


def labelled_row(case: LabelledResponse, template: str, tokenizer: Tokenizer) -> Example:
    prompt_ids = tokenizer.encode(render(template, case.prompt))
    label = float(case.safe)
    return (scored_row(prompt_ids, case.response, Reads.response, tokenizer, label=label),)
