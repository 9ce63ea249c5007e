"""Sampling and scoring of problems by the policy's own ranks, and what the samples come to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from pebble import ProcessExpired

from megatron_r1.evaluation.consensus import consensus, same_text, same_value
from megatron_r1.evaluation.pass_at_k import pass_at_k
from megatron_r1.parallel.exchange import all_gather_objects, broadcast_object
from megatron_r1.parallel.layout import Layout
from megatron_r1.rewards.choices import letters_of
from megatron_r1.rewards.extract import extract_answer
from megatron_r1.rewards.not_graded import not_graded
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.engine import OnProgress, RolloutEngine, SamplingParams
from megatron_r1.types import FinishReason, Prompt, ScoredGroup

_CONSENSUS_TIMEOUT_S = 10.0
"""For the votes of one problem; then answers are compared as text alone."""


@dataclass(frozen=True)
class Outcome:
    """What became of one problem: one entry in each tuple for a sample."""

    prompt_id: str
    draw: int
    is_right: tuple[bool, ...]
    """Empty where no rule can judge."""
    format: tuple[float, ...]
    tokens: tuple[int, ...]
    is_truncated: tuple[bool, ...]
    texts: tuple[str, ...] = ()
    """Only where no rule can judge: what a judge has to read."""
    num_unscored: int = 0
    """Samples that count as wrong because their rule had no time left, or its worker died."""
    consensus: float | None = None
    """cons@k, where it was asked for."""
    compared_as_text: bool = False
    """The votes took too long to be compared by value."""
    measures: Mapping[str, float] = field(default_factory=dict)
    """Rule -> its mean over the samples, where it was asked for."""

    @property
    def num_right(self) -> int:
        return sum(self.is_right)

    @property
    def num_samples(self) -> int:
        return len(self.tokens)

    def pass_at(self, k: int) -> float:
        return pass_at_k(self.num_samples, self.num_right, k)


@dataclass(frozen=True)
class EvalResult:
    """What an evaluation found."""

    pass_at_1: float
    pass_at_n: float
    """pass@k at k = samples: share of problems that any sample solved."""
    format: float
    problems: int
    samples: int
    """Samples of each problem."""
    response_tokens_mean: float
    truncated_frac: float

    def to_json(self) -> dict[str, Any]:
        return {
            "pass@1": self.pass_at_1,
            f"pass@{self.samples}": self.pass_at_n,
            "format": self.format,
            "problems": self.problems,
            "samples": self.samples,
            "response_tokens_mean": self.response_tokens_mean,
            "truncated_frac": self.truncated_frac,
        }


def sample_outcomes(
    engine: RolloutEngine,
    scorer: RewardScorer | None,
    prompts: Sequence[Prompt],
    params: SamplingParams,
    layout: Layout,
    *,
    weight_version: int,
    with_consensus: bool = False,
    measures: Sequence[str] = (),
    on_progress: OnProgress | None = None,
) -> list[Outcome]:
    """One outcome for each prompt, in their order. Every rank calls it; all get the same.

    Args:
        measures: rules of the scorer whose means are wanted.
    """
    own = layout.own_share(prompts)
    groups = engine.generate(own, params, weight_version=weight_version, on_progress=on_progress)
    outcomes: list[Outcome] | None = None
    if scorer is not None:
        scored, voter = scorer.score(groups), scorer if with_consensus else None
        outcomes = [outcome_of(group, voter, measures) for group in scored]
    else:
        for _ in groups:  # keeps step with the leader
            pass
    shares = all_gather_objects(broadcast_object(outcomes, layout.replica), layout.dp_cp)
    by_draw = {outcome.draw: outcome for share in shares for outcome in share}
    return [by_draw[prompt.draw] for prompt in prompts]


def outcome_of(
    scored: ScoredGroup, voter: RewardScorer | None = None, measures: Sequence[str] = ()
) -> Outcome:
    """Count one group. With a `voter`, whose workers compare answers, the votes too."""
    rollouts, rewards = scored.group.rollouts, scored.rewards
    accuracies = [reward.parts["accuracy"] for reward in rewards if "accuracy" in reward.parts]
    is_right = tuple(accuracy >= 1.0 for accuracy in accuracies)
    reasons = [reward.reasons.get("accuracy", "") for reward in rewards]
    vote, compared_as_text = None, False
    if voter is not None and is_right and scored.group.prompt.grader != "code":
        vote, compared_as_text = _vote(scored, is_right, voter)
    return Outcome(
        prompt_id=scored.group.prompt.id,
        draw=scored.group.prompt.draw,
        is_right=is_right,
        format=tuple(reward.parts["format"] for reward in rewards),
        tokens=tuple(len(rollout.token_ids) for rollout in rollouts),
        is_truncated=tuple(r.finish_reason is FinishReason.length for r in rollouts),
        texts=() if is_right else tuple(rollout.text for rollout in rollouts),
        num_unscored=sum(bool(not_graded(reason)) for reason in reasons),
        consensus=vote,
        compared_as_text=compared_as_text,
        measures={
            name: fmean(reward.parts[name] for reward in rewards)
            for name in rewards[0].parts
            if name in measures
        },
    )


def summarise(outcomes: Sequence[Outcome]) -> EvalResult:
    """Means over problems, and over samples."""
    problems, samples = len(outcomes), outcomes[0].num_samples
    total = problems * samples
    return EvalResult(
        pass_at_1=sum(outcome.pass_at(1) for outcome in outcomes) / problems,
        pass_at_n=sum(outcome.pass_at(samples) for outcome in outcomes) / problems,
        format=sum(sum(outcome.format) for outcome in outcomes) / total,
        problems=problems,
        samples=samples,
        response_tokens_mean=sum(sum(outcome.tokens) for outcome in outcomes) / total,
        truncated_frac=sum(sum(outcome.is_truncated) for outcome in outcomes) / total,
    )


def _vote(scored: ScoredGroup, is_right: Sequence[bool], voter: RewardScorer) -> tuple[float, bool]:
    """cons@k, and whether values could not be compared in time."""
    prompt = scored.group.prompt
    answers = [extract_answer(rollout.text)[0] for rollout in scored.group.rollouts]
    if prompt.grader == "choice":
        # `C`, `(C)` and the text of option C are one vote; what names no option is its own.
        choices = prompt.grader_data.get("choices", ())
        answers = [answer and (letters_of(answer, choices) or answer) for answer in answers]
    if prompt.grader == "math":
        try:
            arguments = (answers, is_right, same_value)
            return voter.call(consensus, *arguments, timeout_s=_CONSENSUS_TIMEOUT_S), False
        except (TimeoutError, ProcessExpired):
            return consensus(answers, is_right, same_text), True
    return consensus(answers, is_right, same_text), False
