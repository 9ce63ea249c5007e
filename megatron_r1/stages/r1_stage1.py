"""Cold start: chains of thought that are right and readable, and SFT of the base on them
(arXiv:2501.12948v2 section 3.1, B.3.2).

They come from R1-Zero at temperature 1.0; from a teacher that rewrites what R1-Zero got right; and
from a teacher that is shown a few examples, for prompts that have none so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from megatron_r1.config.sft import R1Stage1Config, TeacherConfig
from megatron_r1.data.rejection import NOTHING_WRITTEN, Selection, select
from megatron_r1.data.samples import Sample, read_samples
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rewards.teacher import SEED, Teacher
from megatron_r1.stages.collect import filter_rules, read_parts, score_texts
from megatron_r1.stages.collect_and_tune import collect_and_tune
from megatron_r1.stages.example_files import read_examples
from megatron_r1.stages.session import Session
from megatron_r1.stages.sft_set import example_of, version_of, with_cache, write_set
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.types import Prompt

_REWRITTEN, _FEW_SHOT = "teacher, rewritten", "teacher, few-shot"


def run_r1_stage1(
    session: Session, stage: R1Stage1Config, run_dir: Path, init_from: Path
) -> MegatronStep:
    """Collect, then train, or go on with either, in `run_dir`. Returns the model as it ended."""
    few_shot: list[Sample] = []
    if stage.few_shot is not None:  # what is wrong with it is found before hours of sampling
        few_shot = read_examples(session, read_samples, stage.few_shot)
    write = partial(write_cold_start, few_shot=few_shot)
    return collect_and_tune(session, stage, run_dir, init_from, write)


def write_cold_start(
    session: Session,
    stage: R1Stage1Config,
    prompts: Sequence[Prompt],
    parts: Path,
    data: Path,
    given_up: Event,
    *,
    few_shot: Sequence[Sample],
) -> str:
    """Choose, rewrite, ask; write the set. On the main rank. Returns a table of reasons."""
    by_draw = {prompt.draw: prompt for prompt in prompts}
    samples = read_parts(parts, by_draw)
    source = Path(stage.collect.source)
    origin = {"model": str(source), "model_version": version_of(source)}
    figures: dict[str, Any] = {}
    if stage.teacher.enabled:
        teacher = Teacher(with_cache(stage.teacher, data / "teacher.jsonl"), given_up)
        with RewardScorer(filter_rules(session, stage.collect)) as scorer:
            samples = rewrite_right_ones(stage, samples, by_draw, teacher, scorer)
            found = select(samples, keep_per_prompt=stage.collect.keep_per_prompt)
            if few_shot:
                asked = answer_missing(stage, found, by_draw, teacher, scorer, few_shot)
                samples, more = samples + asked, select(asked)
                found = Selection(found.kept + more.kept, found.dropped + more.dropped)
        figures = teacher.metrics
    else:
        found = select(samples, keep_per_prompt=stage.collect.keep_per_prompt)
    own = {**origin, "seed": session.config.run.seed}
    examples = [
        example_of(
            sample,
            by_draw[sample["draw"]],
            **(written_by(stage.teacher, sample, origin) if "origin" in sample else own),
        )
        for sample in found.kept
    ]
    return write_set(
        data,
        examples,
        found.dropped,
        heldout_frac=stage.heldout_frac,
        num_samples=len(samples),
        more=figures,
    )


def written_by(
    teacher: TeacherConfig, sample: Mapping[str, Any], origin: Mapping[str, Any]
) -> dict[str, Any]:
    """Lineage of what a teacher wrote: an endpoint does not say how it was trained."""
    more: dict[str, Any] = {"origin": sample["origin"]}
    if sample["origin"] == _REWRITTEN:
        more["rewritten_of"] = dict(origin)
    return {"model": teacher.model, "model_version": None, "seed": SEED, "more": more}


def rewrite_right_ones(
    stage: R1Stage1Config,
    samples: Sequence[Mapping[str, Any]],
    by_draw: Mapping[int, Prompt],
    teacher: Teacher,
    scorer: RewardScorer,
) -> list[dict[str, Any]]:
    """Every sample as it is, but those with a right answer as the teacher writes them, scored anew.

    Of each prompt no more are rewritten than are kept.
    """
    limit = stage.collect.keep_per_prompt or stage.collect.samples_per_prompt
    chosen: dict[int, list[int]] = {}
    for index, sample in enumerate(samples):
        own = chosen.setdefault(sample["draw"], [])
        if sample["parts"].get("accuracy", 0.0) >= 1.0 and len(own) < limit:
            own.append(index)
    indices = [index for own in chosen.values() for index in own]
    cases = [(by_draw[samples[i]["draw"]], samples[i]["response"]) for i in indices]
    texts = teacher.rewrite([(prompt.question, response) for prompt, response in cases])
    scored = score_written(scorer, [prompt for prompt, _ in cases], texts, sample=0)
    result = [
        dict(sample, parts={**sample["parts"], "readable": 0.0},
             reasons={**sample["reasons"], "readable": "not rewritten"})
        for sample in samples
    ]  # fmt: skip
    for index, record in zip(indices, scored, strict=True):
        result[index] = {**record, "sample": samples[index]["sample"], "origin": _REWRITTEN}
    return result


def answer_missing(
    stage: R1Stage1Config,
    found: Selection,
    by_draw: Mapping[int, Prompt],
    teacher: Teacher,
    scorer: RewardScorer,
    few_shot: Sequence[Sample],
) -> list[dict[str, Any]]:
    """The teacher's own answers to prompts of which nothing was kept, scored."""
    has_one = {sample["draw"] for sample in found.kept}
    missing = [prompt for draw, prompt in by_draw.items() if draw not in has_one]
    texts = teacher.answer([prompt.question for prompt in missing], few_shot)
    scored = score_written(scorer, missing, texts, sample=stage.collect.samples_per_prompt)
    return [{**record, "origin": _FEW_SHOT} for record in scored]


def score_written(
    scorer: RewardScorer, prompts: Sequence[Prompt], texts: Sequence[str | None], *, sample: int
) -> list[dict[str, Any]]:
    """Scores of what a teacher wrote, one for each prompt; where that is nothing, it is the fault:
    no rule found anything wrong."""
    asked = [(prompt, text or "") for prompt, text in zip(prompts, texts, strict=True)]
    scored = score_texts(scorer, asked, sample=sample)
    return [
        record if text else {**record, "fault": NOTHING_WRITTEN}
        for record, text in zip(scored, texts, strict=True)
    ]
