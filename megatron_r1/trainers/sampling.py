"""A rollout phase: prompts to groups of responses, and groups to rewards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from megatron_r1.checkpoint.store import LoopState
from megatron_r1.errors import UserError
from megatron_r1.parallel.exchange import all_gather_objects, broadcast_object
from megatron_r1.rollout.engine import SamplingParams
from megatron_r1.trainers.rl_parts import RlConfig, RlParts
from megatron_r1.trainers.rollout_metrics import Pair, add_pairs, rollout_metrics, staleness
from megatron_r1.trainers.selection import (
    num_prompts_to_draw,
    with_overlong_penalty,
    without_silent_groups,
)
from megatron_r1.types import Prompt, RolloutGroup, ScoredGroup


@dataclass(frozen=True)
class Phase:
    """This replica's share of one rollout phase."""

    sampled: list[ScoredGroup]
    """All groups, in the order of their prompts."""
    kept: list[ScoredGroup]
    """Those that are trained on."""
    metrics: dict[str, Pair]
    """Of all that was sampled; they add up over replicas."""


def sample_phase(parts: RlParts, config: RlConfig, state: LoopState) -> Phase:
    """Sample and score the prompts of one phase; draw others for groups that teach nothing.

    Dynamic sampling, DAPO (arXiv:2503.14476) section 3.2: with `algo.sampling_rounds` > 1 rounds go
    on until the phase is full or the rounds are used up; then it is smaller. Groups beyond a full
    phase are left out, the last drawn first.
    """
    algo, samplers = config.algo, parts.megatron_step.policy.layout.dp_cp
    wanted = config.stage.prompts_per_step * config.stage.steps_in_phase(state.step)
    sampled: list[ScoredGroup] = []
    kept: list[ScoredGroup] = []
    kept_draws: list[int] = []  # of all replicas
    metrics: dict[str, Pair] = {}
    num_drawn = num_rounds = 0
    while num_rounds < algo.sampling_rounds and len(kept_draws) < wanted:
        num_prompts = num_prompts_to_draw(
            wanted, drawn=num_drawn, kept=len(kept_draws), multiple=samplers.size
        )
        prompts = parts.prompts.take(num_prompts, step=state.step)
        with parts.recorder.timed("time/own_rollout_s"):  # without waiting for other replicas
            scored = sample_and_score(parts, config, prompts, state)
        metrics = add_pairs(metrics, phase_metrics(parts, scored))
        metrics = add_pairs(metrics, staleness(scored, version=state.step))
        sampled += scored
        kept += without_silent_groups(scored) if algo.drop_zero_std_groups else scored
        own_draws = [group.group.prompt.draw for group in kept]
        gathered = all_gather_objects(own_draws, samplers)
        kept_draws = sorted(draw for part in gathered for draw in part)
        num_drawn, num_rounds = num_drawn + num_prompts, num_rounds + 1
    chosen = set(kept_draws[:wanted])
    kept = [group for group in kept if group.group.prompt.draw in chosen]
    metrics["rollout/sampling_rounds"] = (float(num_rounds), 1.0)
    metrics["rollout/unused_group_frac"] = (float(len(sampled) - len(kept)), float(len(sampled)))
    return Phase(sampled=sampled, kept=kept, metrics=metrics)


def start_phase_ahead(parts: RlParts, config: RlConfig, step: int) -> None:
    """Have the servers begin with the prompts that the phase from `step` on draws first."""
    wanted = config.stage.prompts_per_step * config.stage.steps_in_phase(step)
    prompts = parts.prompts.ahead(wanted, step=step)
    params = sampling_params(config, step)
    parts.engine.start_ahead(parts.megatron_step.policy.layout.own_share(prompts), params)


def sample_and_score(
    parts: RlParts, config: RlConfig, prompts: Sequence[Prompt], state: LoopState
) -> list[ScoredGroup]:
    """Scored rollouts of this replica's prompts, on every rank of the replica."""
    layout = parts.megatron_step.policy.layout
    own = layout.own_share(prompts)
    params = sampling_params(config, state.step)
    groups = parts.engine.generate(
        own,
        params,
        weight_version=state.step,
        on_progress=parts.recorder.on_rollouts(len(own) * params.num_samples),
    )
    scored = score_on_leader(groups, own, parts, step=state.step)
    if parts.reward_models is not None:
        with parts.recorder.timed("time/reward_models_s"):
            scored = parts.reward_models.add_scores(
                scored,
                step=state.step,
                on_micro_batch=parts.recorder.on_micro_batch("reward models"),
            )
    if config.algo.overlong_cache_tokens == 0:
        return scored
    return [
        with_overlong_penalty(
            group,
            max_response_tokens=params.max_response_tokens,
            cache_tokens=config.algo.overlong_cache_tokens,
        )
        for group in scored
    ]


def score_on_leader(
    groups: Iterator[RolloutGroup], prompts: Sequence[Prompt], parts: RlParts, *, step: int
) -> list[ScoredGroup]:
    """The leader scores each group as it arrives; the others take its rewards at the end.

    Returns: scored groups in the order of `prompts`, the same on every rank of the replica.
    """
    replica = parts.megatron_step.policy.layout.replica
    order = {prompt.draw: index for index, prompt in enumerate(prompts)}
    if parts.scorer is not None:
        try:
            scored = parts.scorer.score(groups, step=step)
        except UserError as error:
            error.one_rank = True
            raise
        scored.sort(key=lambda group: order[group.group.prompt.draw])
        broadcast_object([group.rewards for group in scored], replica)
        return scored
    collected = sorted(groups, key=lambda group: order[group.prompt.draw])
    rewards = broadcast_object(None, replica)
    return [ScoredGroup(group=g, rewards=r) for g, r in zip(collected, rewards, strict=True)]


def phase_metrics(parts: RlParts, scored: Sequence[ScoredGroup]) -> dict[str, Pair]:
    """Sums over this replica's rollouts, with what its reward workers had to give up on and its
    engine had to ask for again."""
    metrics = rollout_metrics(scored) | parts.engine.take_metrics()
    if parts.scorer is not None:
        metrics |= parts.scorer.stats.metrics
    return metrics


def sampling_params(config: RlConfig, step: int) -> SamplingParams:
    """The rollout configuration as the engine takes it for a phase that begins after `step`."""
    rollout = config.rollout
    return SamplingParams(
        num_samples=config.stage.rollouts_per_prompt,
        max_response_tokens=rollout.response_tokens_after(step),
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        seed=config.seed,
    )
