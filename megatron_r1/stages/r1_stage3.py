"""Rejection sampling from stage 2's model, and SFT of the base on what is kept
(arXiv:2501.12948v2 section 3.2.1 and B.3.3).

Reasoning: several samples of each prompt, the right and readable ones; a judge with the reference
answer decides where no rule can. Others: a file of samples, with a thought where one helps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from megatron_r1.config.judge import JudgeConfig
from megatron_r1.config.reward import ReadabilityConfig
from megatron_r1.config.sft import R1Stage3Config
from megatron_r1.data.lineage import Lineage
from megatron_r1.data.records import line_id
from megatron_r1.data.rejection import select, trim_to_ratio
from megatron_r1.data.samples import Sample, read_samples
from megatron_r1.data.templates import END_THINK, THINK
from megatron_r1.rewards.format import tag_format
from megatron_r1.rewards.judge import Judge, Kind
from megatron_r1.rewards.language import words_of
from megatron_r1.rewards.readable import fault_of as form_fault
from megatron_r1.rewards.reasoning import final_part_of
from megatron_r1.rewards.teacher import SEED, Teacher, check_answered, with_thought
from megatron_r1.stages.collect import read_parts
from megatron_r1.stages.collect_and_tune import collect_and_tune
from megatron_r1.stages.example_files import read_examples
from megatron_r1.stages.session import Session
from megatron_r1.stages.sft_set import example_of, version_of, with_cache, write_set
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import FinishReason, Prompt, Rollout


def run_r1_stage3(
    session: Session, stage: R1Stage3Config, run_dir: Path, init_from: Path
) -> MegatronStep:
    """Sample, then train, or go on with either, in `run_dir`. Returns the model as it ended."""
    if stage.general is not None:  # what is wrong with it is found before hours of sampling
        read_examples(session, read_samples, stage.general)
    return collect_and_tune(session, stage, run_dir, init_from, write_sft_set)


def write_sft_set(
    session: Session,
    stage: R1Stage3Config,
    prompts: Sequence[Prompt],
    parts: Path,
    data: Path,
    given_up: Event,
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
    asked = [] if stage.general is None else read_examples(session, read_samples, stage.general)
    others = general_examples(stage, asked, data, session.config.reward.readability, given_up)
    mixed = trim_to_ratio(reasoning, others.examples, stage.reasoning_per_general)
    left_out = [(row_of(example), reason) for example, reason in mixed.dropped]
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


def row_of(example: Mapping[str, Any]) -> dict[str, Any]:
    """How dropped.jsonl names an example; one of a file is the only one of its line."""
    lineage = example["lineage"]
    return {"prompt_id": lineage["prompt_id"], "sample": lineage.get("sample", 0)}


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


@dataclass(frozen=True)
class General:
    """What is no reasoning."""

    examples: list[dict[str, Any]]
    """By the schema of docs/data.md."""
    dropped: list[tuple[dict[str, Any], str]]
    """As `rejection.Selection` has it."""
    figures: dict[str, float]
    """The teacher's."""


def general_examples(
    stage: R1Stage3Config,
    samples: Sequence[Sample],
    data: Path,
    readability: ReadabilityConfig,
    given_up: Event,
) -> General:
    """The samples of `stage.general`, those without a thought behind one of the teacher's.

    Raises:
        EngineError: the teacher did not answer.
    """
    found = General([], [], {})
    thoughtful: dict[int, str | None] = {}
    if stage.teacher.enabled:
        teacher = Teacher(with_cache(stage.teacher, data / "teacher.jsonl"), given_up)
        bare = [
            index
            for index, sample in enumerate(samples)
            if THINK not in sample.response and len(words_of(sample.prompt)) > stage.simple_words
        ]
        cases = [(samples[index].prompt, samples[index].response) for index in bare]
        thoughtful = dict(zip(bare, teacher.think_first(cases), strict=True))
        found.figures.update(teacher.metrics)
    for index, sample in enumerate(samples):
        example = general_example(stage, sample, thoughtful.get(index))
        fault = fault_of_thought(sample, thoughtful.get(index), readability)
        if fault:
            found.dropped.append((row_of(example), f"the teacher's thought: {fault}"))
        else:
            found.examples.append(example)
    return found


def general_example(
    stage: R1Stage3Config, sample: Sample, thoughtful: str | None
) -> dict[str, Any]:
    """A line of the set: what the file says of its origin, and who thought.

    Args:
        thoughtful: the response with a teacher's thought, where there is one.
    """
    name = line_id(str(stage.general), sample.line)
    here = {"prompt_id": name, "source": stage.general, "line": sample.line}
    lineage = Lineage(**{**here, **sample.lineage})
    if thoughtful:
        writer = {"model": lineage.model, "model_version": lineage.model_version}
        of = {key: value for key, value in writer.items() if value is not None}
        verdicts = {**lineage.verdicts, "origin": "teacher, thought"}
        if of:
            verdicts["answer_of"] = of
        lineage = replace(
            lineage, model=stage.teacher.model, model_version=None, seed=SEED, verdicts=verdicts
        )
    return {
        "id": name,
        "question": sample.prompt,
        "response": thoughtful or sample.response,
        "dataset": "general",
        "lineage": lineage.to_record(),
    }


def fault_of_thought(sample: Sample, thoughtful: str | None, readability: ReadabilityConfig) -> str:
    """What is wrong with a teacher's thought; empty: nothing, or there is none. The answer behind
    it is the file's: it may be as short as it likes, and a translation is in another language."""
    if not thoughtful:
        return ""
    prompt = Prompt(
        id="", draw=0, question=sample.prompt, text="", token_ids=(), answer="", grader=""
    )
    is_formed, reason = tag_format(prompt, _as_rollout(thoughtful))
    if not is_formed:
        return f"format: {reason}"
    thought = thoughtful.removeprefix(THINK).partition(END_THINK)[0]
    config = replace(readability, min_summary_words=0)
    return form_fault(prompt, _as_rollout(with_thought(thought, "-")), config).partition(":")[0]


def _as_rollout(text: str) -> Rollout:
    return Rollout(
        sample=0,
        token_ids=(),
        logprobs=(),
        finish_reason=FinishReason.stop,
        weight_version=0,
        text=text,
    )
