"""What a suite came to: estimates with intervals, as JSON and as a table."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

from megatron_r1.config.evaluation import SuiteConfig
from megatron_r1.evaluation.intervals import Estimate, estimate
from megatron_r1.evaluation.runner import Outcome, summarise
from megatron_r1.telemetry.table import render_table

HEADER = ["suite", "measure", "value", "interval", "problems", "samples"]


@dataclass(frozen=True)
class SuiteResult:
    """One suite, over its problems."""

    measures: Mapping[str, Estimate]
    """``pass@1``, ``pass@k``, ``cons@k`` or ``judged``, then rules of `evaluation.measures`."""
    by_problem: Sequence[Mapping[str, Any]]
    problems: int
    """Those that were measured: of a judged suite, those with a verdict."""
    samples: int
    format: float
    response_tokens_mean: float
    truncated_frac: float
    not_counted: Mapping[str, int] = field(default_factory=dict)
    """Reason -> problems or samples that are missing from the measures, or count as wrong."""

    def to_json(self) -> dict[str, Any]:
        return {
            "measures": {name: found.to_json() for name, found in self.measures.items()},
            "problems": self.problems,
            "samples": self.samples,
            "format": self.format,
            "response_tokens_mean": self.response_tokens_mean,
            "truncated_frac": self.truncated_frac,
            "not_counted": dict(self.not_counted),
            "by_problem": list(self.by_problem),
        }


def ruled_result(
    outcomes: Sequence[Outcome],
    suite: SuiteConfig,
    *,
    confidence: float,
    skipped: Mapping[str, int],
) -> SuiteResult:
    """Of a suite whose answers rules have graded."""
    measures = {
        f"pass@{k}": estimate([o.pass_at(k) for o in outcomes], confidence=confidence)
        for k in suite.all_ks
    }
    votes = [outcome.consensus for outcome in outcomes if outcome.consensus is not None]
    if votes:
        measures[f"cons@{suite.samples}"] = estimate(votes, confidence=confidence)
    measures |= _means(outcomes, confidence)
    by_problem = [
        {"id": outcome.prompt_id, "right": outcome.num_right}
        | ({} if outcome.consensus is None else {"consensus": outcome.consensus})
        | dict(outcome.measures)
        for outcome in outcomes
    ]
    not_counted = {
        **skipped,
        "samples without a verdict of their rule, counted as wrong": sum(
            outcome.num_unscored for outcome in outcomes
        ),
        "problems whose votes were compared as text alone": sum(
            outcome.compared_as_text for outcome in outcomes
        ),
    }
    return _result(outcomes, measures, by_problem, not_counted)


def judged_result(
    outcomes: Sequence[Outcome],
    verdicts: Sequence[Sequence[float | None]],
    *,
    confidence: float,
    skipped: Mapping[str, int],
) -> SuiteResult:
    """Of a suite that a judge has read. A problem without any verdict is left out, and counted."""
    values, by_problem = [], []
    for outcome, found in zip(outcomes, verdicts, strict=True):
        known = [verdict for verdict in found if verdict is not None]
        verdicts_of = {"id": outcome.prompt_id, "verdicts": list(found)}
        by_problem.append(verdicts_of | dict(outcome.measures))
        if known:
            values.append(fmean(known))
    missing = sum(verdict is None for found in verdicts for verdict in found)
    not_counted = {
        **skipped,
        "samples without a verdict of the judge, left out": missing,
        "problems without any, left out": len(outcomes) - len(values),
    }
    measures = {"judged": estimate(values, confidence=confidence)} if values else {}
    measures |= _means(outcomes, confidence)
    result = _result(outcomes, measures, by_problem, not_counted)
    return dataclasses.replace(result, problems=len(values))


def results_table(results: Mapping[str, Mapping[str, Any]]) -> str:
    """Suite -> `SuiteResult.to_json`, a row for each measure; below it, what does not count."""
    rows = [
        [
            name if index == 0 else "",
            measure,
            f"{found['value']:.3f}",
            f"{found['low']:.3f} to {found['high']:.3f}",
            str(result["problems"]),
            str(result["samples"]),
        ]
        for name, result in results.items()
        for index, (measure, found) in enumerate(result["measures"].items())
    ]
    notes = [
        f"{name}: {count} {reason}"
        for name, result in results.items()
        for reason, count in result["not_counted"].items()
    ]
    return "\n".join([render_table(HEADER, rows), *notes])


def _means(outcomes: Sequence[Outcome], confidence: float) -> dict[str, Estimate]:
    """Of the rules that were measured beside the answers."""
    return {
        name: estimate([o.measures[name] for o in outcomes], confidence=confidence)
        for name in outcomes[0].measures
    }


def _result(
    outcomes: Sequence[Outcome],
    measures: Mapping[str, Estimate],
    by_problem: Sequence[Mapping[str, Any]],
    not_counted: Mapping[str, int],
) -> SuiteResult:
    means = summarise(outcomes)
    return SuiteResult(
        measures=measures,
        by_problem=by_problem,
        problems=means.problems,
        samples=means.samples,
        format=means.format,
        response_tokens_mean=means.response_tokens_mean,
        truncated_frac=means.truncated_frac,
        not_counted={reason: count for reason, count in not_counted.items() if count},
    )
