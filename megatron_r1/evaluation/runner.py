"""pass@k of a policy on held-out problems, decoded by the policy's own ranks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from megatron_r1.config.stage import EvalConfig
from megatron_r1.evaluation.pass_at_k import pass_at_k
from megatron_r1.parallel.exchange import broadcast_object, sum_pairs
from megatron_r1.parallel.layout import Layout
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.engine import OnProgress, RolloutEngine, SamplingParams
from megatron_r1.types import FinishReason, Prompt, ScoredGroup


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


def evaluate(
    engine: RolloutEngine,
    scorer: RewardScorer | None,
    prompts: Sequence[Prompt],
    config: EvalConfig,
    layout: Layout,
    *,
    max_response_tokens: int,
    weight_version: int,
    on_progress: OnProgress | None = None,
) -> EvalResult:
    """Sample, score and count. Every rank calls it; the result is the same on all.

    Args:
        scorer: on leaders, with the rules ``accuracy`` and ``format``; None elsewhere.
    """
    params = SamplingParams(
        num_samples=config.samples_per_problem,
        max_response_tokens=max_response_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=0,
        seed=config.seed,
    )
    own = layout.own_share(prompts)
    groups = engine.generate(own, params, weight_version=weight_version, on_progress=on_progress)
    if scorer is not None:
        counts = count(scorer.score(groups), config.samples_per_problem)
    else:
        for _ in groups:  # keeps step with the leader
            pass
        counts = None
    totals = sum_pairs(broadcast_object(counts, layout.replica), layout.dp_cp)
    return EvalResult(
        pass_at_1=totals["pass@1"],
        pass_at_n=totals["pass@n"],
        format=totals["format"],
        problems=len(prompts),
        samples=config.samples_per_problem,
        response_tokens_mean=totals["tokens"],
        truncated_frac=totals["truncated"],
    )


def count(scored: Sequence[ScoredGroup], num_samples: int) -> dict[str, tuple[float, float]]:
    """Sums over the problems of one replica, as (numerator, denominator)."""
    correct = [sum(reward.parts["accuracy"] >= 1.0 for reward in group.rewards) for group in scored]
    rewards = [reward for group in scored for reward in group.rewards]
    rollouts = [rollout for group in scored for rollout in group.group.rollouts]
    problems, samples = float(len(scored)), float(len(rollouts))
    truncated = sum(rollout.finish_reason is FinishReason.length for rollout in rollouts)
    return {
        "pass@1": (sum(pass_at_k(num_samples, c, 1) for c in correct), problems),
        "pass@n": (sum(pass_at_k(num_samples, c, num_samples) for c in correct), problems),
        "format": (sum(reward.parts["format"] for reward in rewards), samples),
        "tokens": (float(sum(len(rollout.token_ids) for rollout in rollouts)), samples),
        "truncated": (float(truncated), samples),
    }
