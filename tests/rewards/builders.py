"""Prompts, rollouts and groups, by their texts."""

from __future__ import annotations

from megatron_r1.types import FinishReason, Prompt, Rollout, RolloutGroup


def prompt_of(
    answer: str = "3",
    grader: str = "exact",
    *,
    dataset: str = "",
    language: str | None = None,
    **grader_data,
) -> Prompt:
    return Prompt(
        id="p/1",
        draw=0,
        question="?",
        text="?",
        token_ids=(1,),
        answer=answer,
        grader=grader,
        grader_data=grader_data,
        dataset=dataset,
        language=language,
    )


def rollout_of(text: str, sample: int = 0) -> Rollout:
    return Rollout(
        sample=sample,
        token_ids=(1, 2),
        logprobs=(-1.0, -2.0),
        finish_reason=FinishReason.stop,
        weight_version=0,
        text=text,
    )


def group_of(prompt: Prompt, *texts: str) -> RolloutGroup:
    rollouts = tuple(rollout_of(text, sample) for sample, text in enumerate(texts))
    return RolloutGroup(prompt=prompt, rollouts=rollouts)
