"""Reinforcement learning: the one loop, from prompts to an updated policy and back.

A *phase* samples rollouts for several updates, scores them while others decode, and splits them at
random into minibatches; a *step* is one update. The paper makes 16 steps from one phase of 8,192
rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from megatron_r1.algos.kl_penalty import adapt_coefficient
from megatron_r1.algos.objective import policy_loss
from megatron_r1.checkpoint.record import REFERENCE
from megatron_r1.checkpoint.store import CheckpointStore, LoopState
from megatron_r1.config.algo import AlgoConfig, KlPenaltyConfig
from megatron_r1.config.monitor import MonitorConfig
from megatron_r1.config.optimizer import OptimizerConfig
from megatron_r1.config.rollout import RolloutConfig
from megatron_r1.config.stage import R1ZeroConfig
from megatron_r1.data.prompts import PromptSource
from megatron_r1.errors import UserError
from megatron_r1.models.weight_bank import WeightBank
from megatron_r1.monitor.rules import Finding
from megatron_r1.parallel.exchange import all_gather_objects, broadcast_object, sum_pairs
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rollout.engine import RolloutEngine, SamplingParams
from megatron_r1.telemetry.recorder import Recorder
from megatron_r1.trainers.job import Job, stop_if_asked
from megatron_r1.trainers.megatron_step import MegatronStep
from megatron_r1.trainers.minibatches import Minibatch, split_phase, train_rows
from megatron_r1.trainers.phase_advantages import complete_advantages
from megatron_r1.trainers.rollout_metrics import Pair, add_pairs, rollout_metrics
from megatron_r1.trainers.schedule import learning_rate
from megatron_r1.trainers.selection import (
    num_prompts_to_draw,
    with_overlong_penalty,
    without_silent_groups,
)
from megatron_r1.trainers.watch import RewardHackError, monitor_metrics, observe, stop_message
from megatron_r1.types import Prompt, RolloutGroup, ScoredGroup, StepResult, TrainBatch


@dataclass(frozen=True)
class RlParts:
    """What the loop works with; built by `stages/r1_zero.py`."""

    megatron_step: MegatronStep
    bank: WeightBank
    engine: RolloutEngine
    prompts: PromptSource
    scorer: RewardScorer | None
    """On leaders; None on the other ranks."""
    store: CheckpointStore
    recorder: Recorder
    job: Job


@dataclass(frozen=True)
class RlConfig:
    """The groups of the configuration that the loop reads."""

    stage: R1ZeroConfig
    algo: AlgoConfig
    monitor: MonitorConfig
    rollout: RolloutConfig
    optimizer: OptimizerConfig
    seed: int


def train_rl(parts: RlParts, config: RlConfig, state: LoopState) -> LoopState:
    """Go on from `state` to `config.stage.num_steps` updates. Every rank of the job calls it.

    Raises:
        RewardHackError: the monitor's stop rule ended the run, after a checkpoint.
        StoppedEarly: a signal did.
    """
    stage, recorder, job = config.stage, parts.recorder, parts.job
    policy = parts.megatron_step.policy
    parts.prompts.seek(state.prompts_drawn)
    keep_reference = config.algo.kl_beta > 0
    if keep_reference and REFERENCE not in parts.bank:
        parts.bank.store(REFERENCE)
    if isinstance(config.algo, KlPenaltyConfig) and state.kl_coefficient is None:
        state = dataclasses.replace(state, kl_coefficient=config.algo.initial_coefficient)

    while state.step < stage.num_steps:
        stop_if_asked(job, parts.store, state, parts.megatron_step, parts.bank)
        phase_start = state.step
        with recorder.timed("time/rollout_s"):
            phase = sample_phase(parts, config, state)
        with recorder.timed("time/monitor_s"):
            watching, findings, watched = watch(phase, parts, config, state)
        # Rollouts that a signal came upon are dropped, and drawn again after the restart: a signal
        # to every process of the job may have ended programs that they were scored by.
        stop_if_asked(job, parts.store, state, parts.megatron_step, parts.bank)
        state = watching
        metrics = sum_pairs(phase.metrics, policy.layout.dp_cp)
        recorder.phase(phase.sampled, metrics | watched)
        minibatches = deal(parts, config, phase.kept, phase_start)
        with recorder.timed("time/logprobs_s"):
            minibatches = [
                add_logprobs(minibatch, parts, config, keep_reference) for minibatch in minibatches
            ]
        minibatches = complete_advantages(minibatches, config.algo, policy.layout.dp)
        for minibatch in minibatches:
            with recorder.timed("time/update_s"):
                result = update(minibatch, parts, config, state)
            state = dataclasses.replace(state, step=state.step + 1)
            recorder.step(state.step, result)
            job.step_made(state.step, recorder.last_times_s.get("time/own_rollout_s", 0.0))
            parts.store.poll()
            if keep_reference and _is_due(state.step, stage.reference_refresh_steps):
                parts.bank.store(REFERENCE)
        state = dataclasses.replace(
            state,
            prompts_drawn=parts.prompts.num_draws,
            kl_coefficient=next_coefficient(config.algo, state.kl_coefficient, result),
            kl_ref=result.metrics.get("algo/kl_ref"),
        )
        reason_to_stop = stop_message(findings, config.monitor, state.step)
        if reason_to_stop or _checkpoint_due(phase_start, state.step, stage):
            with recorder.timed("time/checkpoint_s"), job.checkpointing():
                parts.store.save(state, policy, parts.megatron_step.optimizer, parts.bank)
        if reason_to_stop:
            parts.store.poll(wait=True)
            raise RewardHackError(reason_to_stop)
    with job.checkpointing():
        parts.store.poll(wait=True)
    job.between_loops()
    return state


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
    wanted = config.stage.prompts_per_step * config.stage.steps_per_phase
    sampled: list[ScoredGroup] = []
    kept: list[ScoredGroup] = []
    kept_draws: list[int] = []  # of all replicas
    metrics: dict[str, Pair] = {}
    num_drawn = num_rounds = 0
    while num_rounds < algo.sampling_rounds and len(kept_draws) < wanted:
        num_prompts = num_prompts_to_draw(
            wanted, drawn=num_drawn, kept=len(kept_draws), multiple=samplers.size
        )
        prompts = parts.prompts.take(num_prompts)
        with parts.recorder.timed("time/own_rollout_s"):  # without waiting for other replicas
            scored = sample_and_score(parts, config, prompts, state)
        metrics = add_pairs(metrics, phase_metrics(parts, scored))
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


def sample_and_score(
    parts: RlParts, config: RlConfig, prompts: Sequence[Prompt], state: LoopState
) -> list[ScoredGroup]:
    """Scored rollouts of this replica's prompts, on every rank of the replica."""
    layout = parts.megatron_step.policy.layout
    own = layout.own_share(prompts)
    params = sampling_params(config.rollout, config.stage.rollouts_per_prompt, config.seed)
    groups = parts.engine.generate(
        own,
        params,
        weight_version=state.step,
        on_progress=parts.recorder.on_rollouts(len(own) * params.num_samples),
    )
    scored = score_on_leader(groups, own, parts, step=state.step)
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
    """Sums over this replica's rollouts, with what its reward workers had to give up on."""
    metrics = rollout_metrics(scored)
    if parts.scorer is not None:
        metrics |= parts.scorer.stats.metrics
    return metrics


def sampling_params(rollout: RolloutConfig, num_samples: int, seed: int) -> SamplingParams:
    """The rollout configuration as the engine takes it."""
    return SamplingParams(
        num_samples=num_samples,
        max_response_tokens=rollout.max_response_tokens,
        temperature=rollout.temperature,
        top_p=rollout.top_p,
        top_k=rollout.top_k,
        seed=seed,
    )


def watch(
    phase: Phase, parts: RlParts, config: RlConfig, state: LoopState
) -> tuple[LoopState, list[Finding], dict[str, float]]:
    """Let the monitor look at a phase, and at held-out prompts where it is told to.

    Returns: the state with what it remembers, what it found, and that as metrics.
    """
    monitor = config.monitor
    if state.step // config.stage.steps_per_phase % monitor.every_phases:
        return state, [], {}
    heldout: list[ScoredGroup] = []
    if monitor.heldout_prompts:
        # Another seed: these prompts' draws are those of prompts that are trained on.
        other_draws = dataclasses.replace(config, seed=config.seed + 1)
        prompts = parts.prompts.heldout_prompts(monitor.heldout_prompts)
        heldout = sample_and_score(parts, other_draws, prompts, state)
    samplers = parts.megatron_step.policy.layout.dp_cp
    history, findings = observe(
        state.watched, phase.sampled, heldout, state.kl_ref, monitor, samplers
    )
    metrics = monitor_metrics(history[-1], findings)
    return dataclasses.replace(state, watched=history), findings, metrics


def deal(
    parts: RlParts, config: RlConfig, kept: Sequence[ScoredGroup], phase_start: int
) -> list[Minibatch]:
    """Advantages on whole groups, then rows to minibatches and replicas."""
    policy = parts.megatron_step.policy
    return split_phase(
        train_rows(kept, config.algo),
        num_minibatches=config.stage.steps_per_phase,
        seed=(config.seed, phase_start),
        config=config.algo,
        max_response_tokens=config.rollout.max_response_tokens,
        samplers=policy.layout.dp_cp,
        num_replicas=policy.layout.dp.size,
        device=policy.host.device,
    )


def add_logprobs(
    minibatch: Minibatch, parts: RlParts, config: RlConfig, keep_reference: bool
) -> Minibatch:
    """Add the log-probabilities of the policy as it sampled, and of the reference."""
    rows = minibatch.batch.rows
    compute = partial(
        parts.megatron_step.logprobs,
        minibatch.batch,
        temperature=config.rollout.temperature,
        on_micro_batch=parts.recorder.on_micro_batch("log-probabilities"),
    )
    old = compute()
    if keep_reference:
        with parts.bank.use(REFERENCE):
            reference = compute()
    else:
        reference = [None] * len(rows)
    filled = tuple(
        dataclasses.replace(row, logprobs_old_L=old_L, logprobs_ref_L=ref_L)
        for row, old_L, ref_L in zip(rows, old, reference, strict=True)
    )
    return dataclasses.replace(minibatch, batch=TrainBatch(rows=filled))


def update(minibatch: Minibatch, parts: RlParts, config: RlConfig, state: LoopState) -> StepResult:
    """One optimizer step; none when no rollout of the minibatch can teach anything."""
    if minibatch.num_rollouts == 0:
        return StepResult(metrics={}, skipped=True)
    return parts.megatron_step.train_step(
        minibatch.batch,
        policy_loss(config.algo, kl_coefficient=state.kl_coefficient),
        lr=learning_rate(state.step, config.stage.num_steps, config.optimizer),
        num_sequences=minibatch.num_rollouts,
        temperature=config.rollout.temperature,
        on_micro_batch=parts.recorder.on_micro_batch("update"),
    )


def next_coefficient(algo: AlgoConfig, current: float | None, last: StepResult) -> float | None:
    """Adapt it to the KL that a phase's updates reached, as its last minibatch measured it; the
    update on that one is not in it."""
    if not isinstance(algo, KlPenaltyConfig) or last.skipped:
        return current
    return adapt_coefficient(current, kl=last.metrics["algo/kl_old"], target_kl=algo.target_kl)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0


def _checkpoint_due(start: int, end: int, stage: R1ZeroConfig) -> bool:
    """Whether a phase from step `start` to `end` crossed a multiple, or ended the run."""
    every = stage.checkpoint_every_steps
    return start // every != end // every or end >= stage.num_steps
