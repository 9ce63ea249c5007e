"""Rejection sampling from stage 2's model, and SFT of the base on what is kept
(arXiv:2501.12948v2 section 3.2.1 and B.3.3).

Reasoning: several samples of each prompt, the right and readable ones; a judge with the reference
answer decides where no rule can. Others: a file of samples, with a thought where one helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from megatron_r1.config.judge import JudgeConfig
from megatron_r1.config.sft import R1Stage3Config
from megatron_r1.data.rejection import select, trim_to_ratio
from megatron_r1.data.samples import Sample, read_samples
from megatron_r1.rewards.judge import Judge, Kind
from megatron_r1.rewards.reasoning import final_part_of
from megatron_r1.rewards.teacher import check_answered
from megatron_r1.stages.collect import read_parts
from megatron_r1.stages.collect_and_tune import collect_and_tune
from megatron_r1.stages.example_files import read_examples
from megatron_r1.stages.general_samples import general_examples
from megatron_r1.stages.session import Session
from megatron_r1.stages.sft_set import dropped_row, example_of, version_of, with_cache, write_set
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import Prompt


def run_r1_stage3(
    session: Session, stage: R1Stage3Config, run_dir: Path, init_from: Path
) -> MegatronStep:
    """Sample, then train, or go on with either, in `run_dir`. Returns the model as it ended."""
    general: list[Sample] = []
    if stage.general is not None:  # what is wrong with it is found before hours of sampling
        general = read_examples(session, read_samples, stage.general)
    write = partial(write_sft_set, general=general)
    return collect_and_tune(session, stage, run_dir, init_from, write)


def write_sft_set(
    session: Session,
    stage: R1Stage3Config,
    prompts: Sequence[Prompt],
    parts: Path,
    data: Path,
    given_up: Event,
    *,
    general: Sequence[Sample],
) -> str:
    """Judge, choose, mix; write the set. On the main rank. Returns a table of reasons."""
    by_draw = {prompt.draw: prompt for prompt in prompts}
    endpoint = with_cache(session.config.judge, data / "judge.jsonl")
    samples = with_verdicts(read_parts(parts, by_draw), by_draw, endpoint, given_up)
    found = select(samples, keep_per_prompt=stage.collect.keep_per_prompt)
    source = Path(stage.collect.source)
    origin = {"model": str(source), "model_version": version_of(source)}
    seed = session.config.run.seed
    reasoning = [
        example_of(sample, by_draw[sample["draw"]], seed=seed, **origin) for sample in found.kept
    ]
    others = general_examples(stage, general, data, session.config.reward.readability, given_up)
    mixed = trim_to_ratio(reasoning, others.examples, stage.reasoning_per_general)
    left_out = [(dropped_row(example), reason) for example, reason in mixed.dropped]
    counts = {
        "reasoning, all": len(reasoning),
        "general, all": len(others.examples),
        "reasoning": len(mixed.reasoning),
        "general": len(mixed.general),
    }
    return write_set(
        data,
        [*mixed.reasoning, *mixed.general],
        [*found.dropped, *others.dropped, *left_out],
        heldout_frac=stage.heldout_frac,
        num_samples=len(samples) + len(others.examples) + len(others.dropped),
        more={**others.figures, **counts},
    )


def with_verdicts(
    samples: Sequence[dict[str, Any]],
    by_draw: Mapping[int, Prompt],
    endpoint: JudgeConfig,
    given_up: Event | None = None,
) -> list[dict[str, Any]]:
    """The same samples; readable ones without an accuracy have the judge's verdict, ``judged``.

    Raises:
        EngineError: the judge did not answer.
    """
    asked = [
        index
        for index, sample in enumerate(samples)
        if "accuracy" not in sample["parts"] and sample["parts"].get("readable", 0.0) >= 1.0
    ]
    cases = []
    for index in asked:
        sample, prompt = samples[index], by_draw[samples[index]["draw"]]
        answer = final_part_of(sample["response"])
        cases.append((prompt.question, prompt.answer, answer, sample["sample"]))
    judgements = Judge(endpoint, given_up).map_correct(cases)
    check_answered(judgements, who=f"the judge at {endpoint.base_url}", group="judge")
    judged = list(samples)
    for index, found in zip(asked, judgements, strict=True):
        if found.kind in (Kind.verdict, Kind.not_an_answer):
            verdict = float(found.verdict == "correct")
            parts = {**samples[index]["parts"], "judged": verdict}
            judged[index] = {**samples[index], "parts": parts}
    return judged
