"""The helpful reward model: Bradley-Terry on pairs (arXiv:2501.12948v2 section 3.1, Eq. 5)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from megatron_r1.algos.reward_losses import scored_pairs_loss
from megatron_r1.config.reward import Reads
from megatron_r1.config.stage import RmHelpfulConfig
from megatron_r1.data.examples import Example
from megatron_r1.data.preferences import PreferencePair, read_preferences
from megatron_r1.data.scored_rows import scored_row, summary_of
from megatron_r1.data.templates import render
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.evaluation.ranking import pair_metrics
from megatron_r1.stages.example_files import read_examples
from megatron_r1.stages.reward_model import run_reward_model
from megatron_r1.stages.session import Session
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.reward_model import RewardTask


def run_rm_helpful(
    session: Session, stage: RmHelpfulConfig, run_dir: Path, init_from: Path
) -> MegatronStep:
    """It sees the summaries alone, so that thoughts are free to be what they have to be."""
    template = session.config.data.template

    def read(path: str, tokenizer: Tokenizer) -> list[Example]:
        reader = partial(read_examples, session, read_preferences)
        return read_pairs(path, template, tokenizer, reader)

    return run_reward_model(session, stage, run_dir, init_from, helpful_task(stage), read=read)


def helpful_task(stage: RmHelpfulConfig) -> RewardTask:
    return RewardTask(
        loss=partial(
            scored_pairs_loss,
            num_pairs=stage.examples_per_step,
            centre_weight=stage.centre_weight,
            margin_weight=stage.margin_weight,
        ),
        measure=lambda scores_N2, _: pair_metrics(scores_N2[:, 0], scores_N2[:, 1]),
    )


def read_pairs(
    path: str,
    template: str,
    tokenizer: Tokenizer,
    reader: Callable[..., list[PreferencePair]] = read_preferences,
) -> list[Example]:
    """Every pair of a file, as `reader` finds them.

    Raises:
        DataError: a line is unusable, or its responses have one summary; ``file:line``.
    """
    pairs = reader(path, part_read=summary_of)
    return [pair_rows(pair, template, tokenizer) for pair in pairs]


def pair_rows(pair: PreferencePair, template: str, tokenizer: Tokenizer) -> Example:
    """Chosen, then rejected, each with the pair's margin as its label."""
    prompt_ids = tokenizer.encode(render(template, pair.prompt))
    margin = pair.margin or 0.0
    return tuple(
        scored_row(prompt_ids, response, Reads.summary, tokenizer, label=margin)
        for response in (pair.chosen, pair.rejected)
    )
