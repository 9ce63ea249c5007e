"""Reinforcement learning: the one loop, from prompts to an updated policy and back.

A *phase* samples rollouts for several updates, scores them while others decode, and splits them at
random into minibatches; a *step* is one update. The paper makes 16 steps from one phase of 8,192
rollouts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from megatron_r1.algos.kl_penalty import adapt_coefficient
from megatron_r1.algos.objective import policy_loss
from megatron_r1.checkpoint.record import REFERENCE
from megatron_r1.checkpoint.store import LoopState
from megatron_r1.config.algo import AlgoConfig, KlPenaltyConfig, KlPlace
from megatron_r1.config.stage import R1ZeroConfig
from megatron_r1.errors import EngineError
from megatron_r1.monitor.rules import Finding
from megatron_r1.parallel.exchange import all_gather_objects, sum_pairs
from megatron_r1.telemetry.rollouts import pass_counts
from megatron_r1.trainers.forward_passes import row_logprobs
from megatron_r1.trainers.job import stop_if_asked
from megatron_r1.trainers.minibatches import Minibatch, split_phase, train_rows
from megatron_r1.trainers.phase_advantages import complete_advantages
from megatron_r1.trainers.rl_parts import RlConfig, RlParts
from megatron_r1.trainers.sampling import (
    Phase,
    sample_and_score,
    sample_phase,
    start_phase_ahead,
)
from megatron_r1.trainers.schedule import learning_rate
from megatron_r1.trainers.watch import RewardHackError, monitor_metrics, observe, stop_message
from megatron_r1.types import ScoredGroup, StepResult, TrainBatch


def train_rl(parts: RlParts, config: RlConfig, state: LoopState) -> LoopState:
    """Go on from `state` to `config.stage.num_steps` updates. Every rank of the job calls it.

    Raises:
        EngineError: engine and trainer do not compute the same, see `check_mismatch`.
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
        stop_if_asked(job, parts.store, state, partial(save, parts))
        phase_start = state.step
        with recorder.timed("time/publish_s"):
            published = parts.engine.publish(state.step)
        with recorder.timed("time/rollout_s"):
            phase = sample_phase(parts, config, state)
        with recorder.timed("time/monitor_s"):
            watching, findings, watched = watch(phase, parts, config, state)
        # Rollouts that a signal came upon are dropped, and drawn again after the restart: a signal
        # to every process of the job may have ended programs that they were scored by.
        stop_if_asked(job, parts.store, state, partial(save, parts))
        state = watching
        metrics = sum_pairs(phase.metrics, policy.layout.dp_cp)
        counts = all_gather_objects(pass_counts(phase.sampled), policy.layout.dp_cp)
        recorder.phase(phase.sampled, counts, metrics | watched | dict(published))
        next_start = phase_start + stage.steps_in_phase(phase_start)
        if config.rollout.steps_ahead and next_start < stage.num_steps:
            start_phase_ahead(parts, config, next_start)
        minibatches = deal(parts, config, phase.kept, phase_start)
        with recorder.timed("time/logprobs_s"):
            minibatches = [
                add_logprobs(minibatch, parts, config, keep_reference, is_first=number == 0)
                for number, minibatch in enumerate(minibatches)
            ]
        if parts.critic is not None:
            with recorder.timed("time/values_s"):
                minibatches = [add_values(minibatch, parts) for minibatch in minibatches]
        minibatches = complete_advantages(minibatches, config.algo, policy.layout.dp)
        for minibatch in minibatches:
            with recorder.timed("time/update_s"):
                result = update(minibatch, parts, config, state)
            check_mismatch(result, config.rollout.max_mismatch)
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
                save(parts, state)
        if reason_to_stop:
            parts.store.poll(wait=True)
            raise RewardHackError(reason_to_stop)
    with job.checkpointing():
        parts.store.poll(wait=True)
    job.between_loops()
    return state


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
        num_minibatches=config.stage.steps_in_phase(phase_start),
        seed=(config.seed, phase_start),
        config=config.algo,
        max_response_tokens=config.rollout.response_tokens_after(phase_start),
        samplers=policy.layout.dp_cp,
        num_replicas=policy.layout.dp.size,
        device=policy.host.device,
    )


def add_logprobs(
    minibatch: Minibatch, parts: RlParts, config: RlConfig, keep_reference: bool, *, is_first: bool
) -> Minibatch:
    """Add the log-probabilities of the policy as it sampled, and of the reference.

    The first minibatch of a phase is updated on before the policy changes: the update's own forward
    pass has the former, unless advantages need them earlier.
    """
    rows = minibatch.batch.rows
    compute = partial(
        row_logprobs,
        parts.megatron_step.policy,
        temperature=config.rollout.temperature,
        on_micro_batch=parts.recorder.on_micro_batch("log-probabilities"),
    )
    none = [None] * len(rows)
    needs_old = not is_first or config.algo.kl_place is not KlPlace.loss
    old = compute(minibatch.batch) if needs_old else none
    if keep_reference:
        own = [dataclasses.replace(row, routed_experts_LMK=None) for row in rows]
        with parts.bank.use(REFERENCE):
            reference = compute(TrainBatch(rows=tuple(own)))
    else:
        reference = none
    filled = tuple(
        dataclasses.replace(row, logprobs_old_L=old_L, logprobs_ref_L=ref_L)
        for row, old_L, ref_L in zip(rows, old, reference, strict=True)
    )
    return dataclasses.replace(minibatch, batch=TrainBatch(rows=filled))


def add_values(minibatch: Minibatch, parts: RlParts) -> Minibatch:
    """Add what the critic expects."""
    return parts.critic.add_values(minibatch, parts.recorder.on_micro_batch("values"))


def update(minibatch: Minibatch, parts: RlParts, config: RlConfig, state: LoopState) -> StepResult:
    """One optimizer step of the policy, and one of its critic where it has one; none when no
    rollout of the minibatch can teach anything."""
    if minibatch.num_rollouts == 0:
        return StepResult(metrics={}, skipped=True)
    if parts.critic is None:
        return update_policy(minibatch, parts, config, state)
    learned = parts.critic.update(
        minibatch,
        step=state.step,
        num_steps=config.stage.num_steps,
        on_micro_batch=parts.recorder.on_micro_batch("critic"),
    )
    if parts.critic.warms_up(state.step):
        return StepResult(metrics=learned, skipped=True)
    result = update_policy(minibatch, parts, config, state)
    return dataclasses.replace(result, metrics={**result.metrics, **learned})


def update_policy(
    minibatch: Minibatch, parts: RlParts, config: RlConfig, state: LoopState
) -> StepResult:
    step, loss = parts.megatron_step, policy_loss(config.algo, kl_coefficient=state.kl_coefficient)
    return step.train_step(
        minibatch.batch,
        step.on_logprobs(loss, temperature=config.rollout.temperature),
        lr=learning_rate(state.step, config.stage.num_steps, config.optimizer),
        num_sequences=minibatch.num_rollouts,
        on_micro_batch=parts.recorder.on_micro_batch("update"),
    )


def check_mismatch(result: StepResult, limit: float) -> None:
    """End a run whose engine samples from something else than what is trained; the checkpoint
    before it stands.

    Args:
        limit: nats a token, `rollout.max_mismatch`.
    Raises:
        EngineError: on every rank.
    """
    gap = result.metrics.get("mismatch/logprob_abs_mean", 0.0)
    if gap > limit:
        raise EngineError(
            f"engine and trainer differ by {gap:.3g} nats a token in the log-probabilities of what "
            f"was sampled, more than rollout.max_mismatch = {limit}: the engine has other weights, "
            "or computes another model. Nothing was saved since the last checkpoint; "
            "docs/servers.md says what to compare"
        )


def save(parts: RlParts, state: LoopState) -> None:
    critic = None if parts.critic is None else parts.critic.megatron_step
    trained = parts.megatron_step
    parts.store.save(state, trained.policy, trained.optimizer, parts.bank, critic)


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
