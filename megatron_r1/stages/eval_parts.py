"""An evaluation in parts: what a start of the job has measured, the next one does not ask again."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from megatron_r1.config.reward import RewardConfig
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.evaluation.runner import Outcome, sample_outcomes
from megatron_r1.models.policy import Policy
from megatron_r1.parallel.exchange import on_main_rank
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.stages.collect import stop_between_parts, stop_if_terminated
from megatron_r1.stages.session import Session
from megatron_r1.telemetry.files import write_json
from megatron_r1.telemetry.progress import Progress
from megatron_r1.types import Prompt


def sample_in_parts(
    session: Session,
    policy: Policy,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    rules: RewardConfig,
    result: Path,
    question: Mapping[str, Any],
    *,
    weight_version: int = 0,
    with_consensus: bool = False,
    measures: Sequence[str] = (),
) -> list[Outcome]:
    """`sample_outcomes`, `evaluation.problems_per_part` at a time. Every rank of the job calls it.

    Args:
        result: the file that the outcomes are for, `<name>.json`; parts are kept beside it until
            `forget_parts`.
        question: all that the outcomes depend on, as JSON has it.
    Raises:
        StoppedEarly: on every rank, between two parts.
    """
    size = session.config.evaluation.problems_per_part
    parts = [prompts[first : first + size] for first in range(0, len(prompts), size)]
    paths = [_folder(result) / f"part_{number:05d}.json" for number in range(len(parts))]
    found = on_main_rank(
        lambda: [_read(path, question, part) for path, part in zip(paths, parts, strict=True)]
    )
    missing = [number for number, outcomes in enumerate(found) if outcomes is None]
    if not missing:
        return [outcome for outcomes in found for outcome in outcomes]
    name, layout, telemetry = result.stem, session.layout, session.config.telemetry
    known = sum(len(outcomes) for outcomes in found if outcomes is not None)
    if known:
        session.say(f"evaluating {name}: {known} of {len(prompts)} problems are known")
    engine = session.engine(policy, tokenizer)
    engine.publish(weight_version)
    own = [len(layout.own_share(parts[number])) * params.num_samples for number in missing]
    with (
        session.scorer(rules) as scorer,
        Progress(
            sum(own),
            "responses",
            f"evaluating {name}",
            every_s=telemetry.progress_every_s,
            enabled=layout.is_main and telemetry.progress,
        ) as progress,
    ):
        for index, number in enumerate(missing):
            stop_between_parts(session)
            before = sum(own[:index])
            outcomes = sample_outcomes(
                engine,
                scorer,
                parts[number],
                params,
                layout,
                weight_version=weight_version,
                with_consensus=with_consensus,
                measures=measures,
                on_progress=lambda done, tokens, before=before: progress.update(
                    before + done, tokens=tokens
                ),
            )
            stop_if_terminated(session)
            found[number] = outcomes
            on_main_rank(lambda path=paths[number], own=outcomes: _write(path, question, own))
    return [outcome for outcomes in found for outcome in outcomes]


def forget_parts(result: Path) -> None:
    """They are in the result now. On the main rank."""
    shutil.rmtree(_folder(result), ignore_errors=True)


def _folder(result: Path) -> Path:
    return result.with_name(f"{result.stem}_parts")


def _write(path: Path, question: Mapping[str, Any], outcomes: Sequence[Outcome]) -> None:
    listed = [dataclasses.asdict(outcome) for outcome in outcomes]
    write_json(path, {"question": question, "outcomes": listed})


def _read(
    path: Path, question: Mapping[str, Any], prompts: Sequence[Prompt]
) -> list[Outcome] | None:
    """None where there is no part, or one of another question, or of other prompts."""
    try:
        known = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    if known["question"] != question:
        return None
    outcomes = [
        Outcome(**{k: tuple(v) if isinstance(v, list) else v for k, v in listed.items()})
        for listed in known["outcomes"]
    ]
    is_same = [outcome.draw for outcome in outcomes] == [prompt.draw for prompt in prompts]
    return outcomes if is_same else None
