"""General ability, by a judge that sees what a user would: the text after the thought."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from megatron_r1.data.problems import Problem
from megatron_r1.data.scored_rows import summary_of
from megatron_r1.evaluation.benchmarks.general import PAIRWISE
from megatron_r1.rewards.judge import PAIR_SCORES, Judge, Judgement, Kind
from megatron_r1.rewards.teacher import check_answered


def judge_responses(
    problems: Sequence[Problem], texts: Sequence[Sequence[str]], judge: Judge, *, url: str
) -> list[list[float | None]]:
    """For each response 1, 0.5 or 0; None where there is no verdict.

    Against a baseline: won, tied or lost, the mean of both sides, since judges prefer one. Against
    a reference: correct or not. Only the final summary is shown, as in R1 appendix D.1, and nothing
    of a thought that was not ended.

    Args:
        url: where the judge is, for messages.
    Raises:
        EngineError: the judge did not answer more than a few of the requests, or most of its
            replies hold no verdict.
    """
    pairs, references = [], []
    for problem, responses in zip(problems, texts, strict=True):
        for sample, response in enumerate(map(summary_of, responses)):
            if problem.grader == PAIRWISE:
                pairs.append((problem.question, response, problem.answer, sample))
                pairs.append((problem.question, problem.answer, response, sample))
            else:
                references.append((problem.question, problem.answer, response, sample))
    compared, checked = judge.map_compare(pairs), judge.map_correct(references)
    check_answered([*compared, *checked], who=f"the judge at {url}", group="evaluation.judge")
    compared, checked = iter(compared), iter(checked)
    return [
        [
            _mean_of_sides(next(compared), next(compared))
            if problem.grader == PAIRWISE
            else _correct(next(checked))
            for _ in responses
        ]
        for problem, responses in zip(problems, texts, strict=True)
    ]


def _mean_of_sides(first: Judgement, swapped: Judgement) -> float | None:
    if first.kind is not Kind.verdict or swapped.kind is not Kind.verdict:
        return None
    return (_won(PAIR_SCORES, first) + 1 - _won(PAIR_SCORES, swapped)) / 2


def _won(scores: Mapping[str, int], judgement: Judgement) -> float:
    """Of A: 1, 0.5 or 0, however clear."""
    score = scores[judgement.verdict]
    return 1.0 if score > 0 else 0.5 if score == 0 else 0.0


def _correct(judgement: Judgement) -> float | None:
    if judgement.kind not in (Kind.verdict, Kind.not_an_answer):
        return None
    return float(judgement.verdict == "correct")
