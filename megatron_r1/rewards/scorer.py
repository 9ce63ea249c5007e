"""Scoring in worker processes, while the policy is still decoding.

A group goes to a worker as one task; of a prompt whose answers are run, each rollout does. A task
that overruns the limit of a single rollout, or takes its worker with it, is scored again rollout by
rollout, and only those that fail alone are worth 0.
"""

from __future__ import annotations

import multiprocessing.context
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import forkserver
from types import FrameType, ModuleType, TracebackType
from typing import Any, Self, TypeVar

from pebble import CONSTS, ProcessExpired, ProcessFuture, ProcessPool

from megatron_r1.config.reward import RewardConfig
from megatron_r1.data import gym_tasks
from megatron_r1.rewards.code import wall_budget_s
from megatron_r1.rewards.math_answers import is_equivalent
from megatron_r1.rewards.mix import apply_group_rules, apply_rules, group_rules_of, rules_of
from megatron_r1.rewards.not_graded import TIMEOUT, WORKER_DIED
from megatron_r1.rewards.registry import Rule
from megatron_r1.signals import children_outlive_sigterm
from megatron_r1.types import Prompt, Reward, Rollout, RolloutGroup, ScoredGroup

T = TypeVar("T")
_MAX_POOL_RESTARTS = 3
_POLL_S = 1.0
CONSTS.term_timeout = 0  # pebble: SIGKILL follows SIGTERM, which workers outlive, at once


@dataclass(frozen=True)
class ScoringStats:
    """What one call of `RewardScorer.score` saw."""

    num_rollouts: int = 0
    num_timeouts: int = 0
    num_worker_deaths: int = 0
    """Rollouts that a worker died on twice: in their group, then alone."""

    @property
    def metrics(self) -> dict[str, tuple[float, float]]:
        """As (numerator, denominator), to be added up over replicas."""
        total = float(self.num_rollouts)
        return {
            "reward/timeout_frac": (float(self.num_timeouts), total),
            "reward/worker_death_frac": (float(self.num_worker_deaths), total),
        }


@dataclass(frozen=True)
class _Pending:
    """A task in a pool."""

    pool: ProcessPool
    future: ProcessFuture

    def result(self) -> Any:
        """Wait. Raises what the task raised, TimeoutError, ProcessExpired or BrokenProcessPool."""
        while not wait([self.future], timeout=_POLL_S).done:
            if not self.pool.active:
                raise BrokenProcessPool("the pool ended before the task did")
        return self.future.result()


class RewardScorer:
    """Scores groups with `reward.num_workers` processes, which start here and end with the context.

    Raises:
        ConfigError: `reward.weights` names an unknown rule.
        BrokenProcessPool: the workers cannot start.
    """

    def __init__(self, config: RewardConfig) -> None:
        self._config = config
        self._rules = rules_of(config)
        self._group_rules = group_rules_of(config)
        self._step = 0
        self._pool = self._start_pool()
        self._pool.schedule(_ready).result()
        self.stats = ScoringStats()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers. Whatever they are scoring is dropped."""
        self._pool.stop()
        self._pool.join()

    def score(self, groups: Iterable[RolloutGroup], *, step: int = 0) -> list[ScoredGroup]:
        """Score groups as they arrive; the result has their order. `step` updates lie behind.

        A rollout beyond `reward.timeout_s`, or on which its worker dies, is worth 0, with the
        reason in every part; `stats` counts both.

        Raises:
            BrokenRuleError: a rule broke; the message has rule, prompt and traceback.
            UserError: a rule refuses a prompt's data.
        """
        self.stats = ScoringStats()
        self._step = step
        pending: list[tuple[RolloutGroup, list[tuple[Sequence[Rollout], _Pending]]]] = []
        try:
            for group in groups:
                shares = _shares(group)
                tasks = [(share, self._submit(group.prompt, share)) for share in shares]
                pending.append((group, tasks))
            return [self._collect(group, tasks) for group, tasks in pending]
        except BaseException:
            for _, tasks in pending:
                for _, task in tasks:
                    task.future.cancel()
            raise

    def call(self, function: Callable[..., T], *arguments: Any, timeout_s: float) -> T:
        """Run something unbounded in a worker, which is ended where it takes too long.

        Raises:
            TimeoutError, ProcessExpired: it did, or took the worker with it.
        """
        if not self._pool.active:
            self.close()
            self._pool = self._start_pool()
        future = self._pool.schedule(function, args=arguments, timeout=timeout_s)
        return _Pending(self._pool, future).result()

    def _collect(
        self, group: RolloutGroup, tasks: Sequence[tuple[Sequence[Rollout], _Pending]]
    ) -> ScoredGroup:
        rewards = [
            reward for share, task in tasks for reward in self._rewards(group.prompt, share, task)
        ]
        self._count(num_rollouts=len(rewards))
        rewards = apply_group_rules(group, rewards, self._group_rules, self._weights(group.prompt))
        return ScoredGroup(group=group, rewards=tuple(rewards))

    def _weights(self, prompt: Prompt) -> dict[str, float]:
        return self._config.weights_at(prompt.dataset, self._step)

    def _rewards(self, prompt: Prompt, rollouts: Sequence[Rollout], task: _Pending) -> list[Reward]:
        """Wait for a task; where it failed as a whole, score its rollouts one by one."""
        try:
            return self._result(prompt, rollouts, task)
        except (TimeoutError, ProcessExpired) as error:
            if len(rollouts) == 1:
                return [self._failed(prompt, error)]
        singles = [(rollout,) for rollout in rollouts]
        tasks = [self._submit(prompt, single) for single in singles]
        return [
            reward
            for single, single_task in zip(singles, tasks, strict=True)
            for reward in self._rewards(prompt, single, single_task)
        ]

    def _result(self, prompt: Prompt, rollouts: Sequence[Rollout], task: _Pending) -> list[Reward]:
        """A task's result, from a new pool where the old one broke: pebble gives up a whole pool
        when an idle worker is killed."""
        for _ in range(_MAX_POOL_RESTARTS):
            try:
                return task.result()
            except BrokenProcessPool:
                task = self._submit(prompt, rollouts)
        return task.result()

    def _failed(self, prompt: Prompt, error: TimeoutError | ProcessExpired) -> Reward:
        """The reward of a rollout that could not be scored."""
        if isinstance(error, ProcessExpired):
            self._count(num_worker_deaths=1)
            reason = f"{WORKER_DIED}, exit code {error.exitcode}"
        else:
            self._count(num_timeouts=1)
            reason = TIMEOUT
        weights = {
            name: weight for name, weight in self._weights(prompt).items() if name in self._rules
        }
        parts = dict.fromkeys(weights, 0.0)
        return Reward(0.0, parts, dict.fromkeys(weights, reason), weights)

    def _count(self, **increments: int) -> None:
        counts = {name: getattr(self.stats, name) + value for name, value in increments.items()}
        self.stats = replace(self.stats, **counts)

    def _submit(self, prompt: Prompt, rollouts: Sequence[Rollout]) -> _Pending:
        if not self._pool.active:
            self.close()
            self._pool = self._start_pool()
        # Log-probabilities are most of a rollout's bytes, and no rule reads them.
        light = [replace(rollout, logprobs=()) for rollout in rollouts]
        future = self._pool.schedule(
            _score_rollouts,
            args=(prompt, light, self._rules, self._weights(prompt)),
            timeout=self._timeout_s(prompt),
        )
        return _Pending(self._pool, future)

    def _timeout_s(self, prompt: Prompt) -> float:
        if not _is_run(prompt):
            return self._config.timeout_s
        return self._config.timeout_s + wall_budget_s(prompt.grader_data, self._config.sandbox)

    def _start_pool(self) -> ProcessPool:
        return ProcessPool(
            max_workers=self._config.num_workers,
            initializer=_warm_up,
            context=_worker_context(),
        )


def _is_run(prompt: Prompt) -> bool:
    """Whether its answers are programs: each takes seconds, within limits of its own."""
    return prompt.grader == "code"


def _shares(group: RolloutGroup) -> list[Sequence[Rollout]]:
    """The rollouts of each task."""
    if _is_run(group.prompt):
        return [(rollout,) for rollout in group.rollouts]
    return [group.rollouts]


def _score_rollouts(
    prompt: Prompt,
    rollouts: Sequence[Rollout],
    rules: Mapping[str, Rule],
    weights: Mapping[str, float],
) -> list[Reward]:
    return [apply_rules(prompt, rollout, rules, weights) for rollout in rollouts]


def _warm_up() -> None:
    """What a worker does before its first task: load the graders, and outlive SIGTERM.

    Slurm sends it to every process of a job that it is about to preempt, which then still has a
    checkpoint to write. Programs that a worker starts die of it, as programs do.
    """
    signal.signal(signal.SIGTERM, _outlive)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    gym_tasks.warm_up()
    is_equivalent("1", "1")


def _outlive(number: int, frame: FrameType | None) -> None:
    """No action. A signal that is ignored would be so in programs started from here, too."""


def _ready() -> None:
    """The first task of a pool; done when a worker is warm."""


class _WorkerProcess(multiprocessing.context.ForkServerProcess):
    """A process that does not import the program that was started, which would import torch."""

    @staticmethod
    def _Popen(process_obj):  # noqa: N802  multiprocessing's name
        with _hidden_main():
            return multiprocessing.context.ForkServerProcess._Popen(process_obj)


class _WorkerContext(multiprocessing.context.ForkServerContext):
    Process = _WorkerProcess


def _worker_context() -> _WorkerContext:
    """Workers fork from a clean server process, which has no threads and no process groups, and
    which has loaded the graders, so that a worker is replaced within milliseconds."""
    context = _WorkerContext()
    context.set_forkserver_preload(["reasoning_gym", "math_verify", "pebble"])
    with children_outlive_sigterm():
        forkserver.ensure_running()
    return context


@contextmanager
def _hidden_main() -> Iterator[None]:
    """multiprocessing reads from `__main__` what a child should import; an empty module is
    nothing."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
