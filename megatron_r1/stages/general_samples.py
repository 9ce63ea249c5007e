"""Stage 3's samples that are no reasoning: a file's, with a teacher's thought where one helps
(arXiv:2501.12948v2 B.3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

from megatron_r1.config.reward import ReadabilityConfig
from megatron_r1.config.sft import R1Stage3Config
from megatron_r1.data.lineage import Lineage
from megatron_r1.data.records import line_id
from megatron_r1.data.samples import Sample
from megatron_r1.data.templates import END_THINK, THINK
from megatron_r1.rewards.format import tag_format
from megatron_r1.rewards.language import words_of
from megatron_r1.rewards.readable import fault_of as form_fault
from megatron_r1.rewards.teacher import SEED, Teacher, with_thought
from megatron_r1.stages.sft_set import dropped_row, with_cache
from megatron_r1.types import FinishReason, Prompt, Rollout


@dataclass(frozen=True)
class General:
    """What is no reasoning."""

    examples: list[dict[str, Any]]
    """By the schema of docs/data.md."""
    dropped: list[tuple[dict[str, Any], str]]
    """As `rejection.Selection` has it."""
    figures: Mapping[str, float]
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
    thoughtful: dict[int, str | None] = {}
    figures: Mapping[str, float] = {}
    if stage.teacher.enabled:
        teacher = Teacher(with_cache(stage.teacher, data / "teacher.jsonl"), given_up)
        bare = [
            index
            for index, sample in enumerate(samples)
            if THINK not in sample.response and len(words_of(sample.prompt)) > stage.simple_words
        ]
        cases = [(samples[index].prompt, samples[index].response) for index in bare]
        thoughtful = dict(zip(bare, teacher.think_first(cases), strict=True))
        figures = teacher.metrics
    examples: list[dict[str, Any]] = []
    dropped: list[tuple[dict[str, Any], str]] = []
    for index, sample in enumerate(samples):
        example = general_example(stage, sample, thoughtful.get(index))
        fault = fault_of_thought(sample, thoughtful.get(index), readability)
        if fault:
            dropped.append((dropped_row(example), f"the teacher's thought: {fault}"))
        else:
            examples.append(example)
    return General(examples, dropped, figures)


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
