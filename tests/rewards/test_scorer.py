"""Worker processes: order, limits, deaths, isolation, speed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from megatron_r1.config.reward import RewardConfig
from megatron_r1.data.gym_tasks import generate_problems
from megatron_r1.errors import ConfigError, DataError
from megatron_r1.rewards.mix import BrokenRuleError, apply_rules, rules_of
from megatron_r1.rewards.registry import RULES
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.types import RolloutGroup
from tests.rewards import rules_for_tests
from tests.rewards.builders import group_of, prompt_of

R1_ZERO = RewardConfig()


@contextmanager
def scorer_of(rule_name: str, **settings) -> Iterator[RewardScorer]:
    """A scorer with one rule of `rules_for_tests`."""
    RULES[rule_name] = getattr(rules_for_tests, rule_name)
    try:
        with RewardScorer(RewardConfig(weights={rule_name: 1.0}, **settings)) as scorer:
            yield scorer
    finally:
        del RULES[rule_name]


@pytest.fixture(scope="module")
def scorer() -> Iterator[RewardScorer]:
    with RewardScorer(R1_ZERO) as scorer:
        yield scorer


def totals(scored) -> list[list[float]]:
    return [[reward.total for reward in group.rewards] for group in scored]


def test_groups_and_rollouts_keep_their_order(scorer):
    good, bad = "<think>x</think><answer>3</answer>", "<answer>3</answer>"
    groups = [group_of(prompt_of("3"), good, bad), group_of(prompt_of("4"), bad, good, "")]
    scored = scorer.score(groups)
    assert totals(scored) == [[2.0, 1.0], [0.0, 1.0, 0.0]]
    # The groups come back themselves, log-probabilities and all.
    assert [group.group for group in scored] == groups
    assert scorer.stats.num_rollouts == 5
    assert {numerator for numerator, _ in scorer.stats.metrics.values()} == {0.0}


def test_workers_agree_with_this_process(scorer):
    group = group_of(prompt_of("1/2", "math"), r"\boxed{0.5}", r"\boxed{\frac{1}{3}}", "none")
    (scored,) = scorer.score([group])
    assert list(scored.rewards) == [
        apply_rules(group.prompt, rollout, rules_of(R1_ZERO), R1_ZERO.weights)
        for rollout in group.rollouts
    ]


def test_scoring_starts_while_groups_are_still_coming():
    with scorer_of("worker_pid") as scorer:
        arrived = []

        def decoding() -> Iterator[RolloutGroup]:
            for _ in range(3):
                time.sleep(0.3)
                arrived.append(time.monotonic())
                yield group_of(prompt_of(), "x")

        scored = scorer.score(decoding())
    assert time.monotonic() - arrived[-1] < 2.0
    assert len(scored) == 3
    assert all(reward.total != os.getpid() for group in scored for reward in group.rewards)


def test_a_sigterm_to_every_process_of_a_job_ends_no_worker():
    def decoding(group: RolloutGroup) -> Iterator[RolloutGroup]:
        yield group
        time.sleep(0.3)  # the worker is at it
        for process in own.children(recursive=True):
            process.terminate()

    own = psutil.Process()
    with scorer_of("sleepy") as scorer:
        before = own.children(recursive=True)  # workers, and the server that they fork from
        (scored,) = scorer.score(decoding(group_of(prompt_of(), "0.6", "0")))
        assert totals([scored]) == [[1.0, 1.0]]
        assert own.children(recursive=True) == before


def test_only_the_slow_rollout_times_out():
    # The group takes 1.1 s and overruns 0.5 s as a whole; alone, 0.1 s fits and 1 s does not.
    with scorer_of("sleepy", timeout_s=0.5) as scorer:
        (scored,) = scorer.score([group_of(prompt_of(), "0.1", "1", "0")])
        assert totals([scored]) == [[1.0, 0.0, 1.0]]
        assert scored.rewards[1].reasons == {"sleepy": "timeout"}
        assert scorer.stats.num_timeouts == 1
        assert scorer.stats.metrics["reward/timeout_frac"] == (1.0, 3.0)
        # The next call starts counting again.
        scorer.score([group_of(prompt_of(), "0")])
        assert scorer.stats.num_timeouts == 0


def test_rollouts_that_are_slow_only_together_all_count():
    with scorer_of("sleepy", timeout_s=0.5) as scorer:
        assert totals(scorer.score([group_of(prompt_of(), *["0.2"] * 5)])) == [[1.0] * 5]
        assert scorer.stats.num_timeouts == 0


def test_a_rule_stuck_in_c_times_out_and_its_neighbours_do_not():
    # Out of reach of any Python-level limit: a signal's handler would wait for the power.
    with scorer_of("powerful", timeout_s=2.0) as scorer:
        started = time.monotonic()
        (scored,) = scorer.score([group_of(prompt_of(), "9**9**9", "3", "4")])
        assert time.monotonic() - started < 20.0
    assert totals([scored]) == [[0.0, 1.0, 1.0]]
    assert scored.rewards[0].reasons == {"powerful": "timeout"}


def test_a_tower_of_powers_is_refused_at_once():
    texts = [r"\boxed{9^{9^{9^{9}}}}", r"\boxed{3}", r"\boxed{4}"]
    with RewardScorer(RewardConfig(weights={"accuracy": 1.0}, timeout_s=20.0)) as scorer:
        (scored,) = scorer.score([group_of(prompt_of("3", "math"), *texts)])
        assert scorer.stats.num_timeouts == 0
    assert totals([scored]) == [[0.0, 1.0, 0.0]]


def test_a_broken_rule_stops_the_run_by_name():
    groups = [group_of(prompt_of(), "fine"), group_of(prompt_of(), "fine", "break")]
    with scorer_of("broken") as scorer:
        with pytest.raises(BrokenRuleError, match="'broken' on prompt p/1, sample 1") as caught:
            scorer.score(groups)
        assert "ZeroDivisionError: the rule, not the response" in str(caught.value)
        # The workers are fit for the next call.
        assert totals(scorer.score(groups[:1])) == [[1.0]]


def test_a_mistake_in_the_data_stays_a_mistake_in_the_data(scorer):
    with pytest.raises(DataError, match="asks for grader 'guess'"):
        scorer.score([group_of(prompt_of("3", "guess"), "<answer>3</answer>")])


def test_an_engine_that_fails_passes_through(scorer):
    def decoding() -> Iterator[RolloutGroup]:
        yield group_of(prompt_of("3"), "<answer>3</answer>")
        raise ConnectionError("engine gone")

    with pytest.raises(ConnectionError, match="engine gone"):
        scorer.score(decoding())
    assert totals(scorer.score([group_of(prompt_of("3"), "<answer>3</answer>")])) == [[1.0]]


def test_a_rollout_that_kills_its_worker_is_named_and_the_others_survive():
    with scorer_of("suicidal") as scorer:
        groups = [group_of(prompt_of(), "live", "die", "live"), group_of(prompt_of(), "live")]
        scored = scorer.score(groups)
        assert totals(scored) == [[1.0, 0.0, 1.0], [1.0]]
        assert scored[0].rewards[1].reasons == {"suicidal": "worker died, exit code -9"}
        assert scorer.stats.num_worker_deaths == 1


@pytest.mark.parametrize("pause_s", [0.0, 1.0])
def test_a_worker_killed_between_two_calls_is_replaced(pause_s):
    with scorer_of("worker_pid") as scorer:
        (scored,) = scorer.score([group_of(prompt_of(), "x")])
        first_pid = int(scored.rewards[0].total)
        os.kill(first_pid, signal.SIGKILL)
        time.sleep(pause_s)
        rewards = [
            reward
            for group in scorer.score([group_of(prompt_of(), "x", "x")] * 3)
            for reward in group.rewards
        ]
        assert len(rewards) == 6
        assert first_pid not in {int(reward.total) for reward in rewards}


def test_each_data_set_is_scored_by_its_own_mix_at_each_step():
    good = "<think>we add both numbers</think><answer>3</answer>"
    math = prompt_of("3", dataset="math", language="en")
    style = prompt_of("", "none", dataset="style", language="en")
    config = RewardConfig(
        weights={"accuracy": 1.0, "language": 1.0},
        mixes={"style": {"format": 2.0, "language": 1.0}},
        schedules={"format": {1300: 1.0}},
    )
    with RewardScorer(config) as scorer:
        groups = [group_of(math, good, good + "?"), group_of(style, good)]
        assert totals(scorer.score(groups, step=1299)) == [[2.0, 2.0], [1.0]]
        scored = scorer.score(groups, step=1300)
    assert totals(scored) == [[2.0, 2.0], [3.0]]
    assert scored[1].rewards[0].parts == {"format": 1.0, "language": 1.0}
    assert scored[1].rewards[0].weights == {"format": 2.0, "language": 1.0}
    assert scored[1].rewards[0].reasons["language"] == "4 of 4 words are en"


def test_two_workers_share_the_groups():
    with scorer_of("sleepy", num_workers=2) as scorer:
        started = time.monotonic()
        scored = scorer.score([group_of(prompt_of(), "0.5")] * 4)
        assert totals(scored) == [[1.0]] * 4
        # 4 x 0.5 s on one worker would be 2 s.
        assert time.monotonic() - started < 1.8


def test_an_unknown_rule_stops_before_workers_start():
    with pytest.raises(ConfigError, match="unknown rules: truth"):
        RewardScorer(RewardConfig(weights={"truth": 1.0}))


def test_workers_import_neither_torch_nor_the_program_that_started_them(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(
        "import torch\n"
        "from megatron_r1.config.reward import RewardConfig\n"
        "from megatron_r1.rewards.registry import RULES\n"
        "from megatron_r1.rewards.scorer import RewardScorer\n"
        "from tests.rewards.builders import group_of, prompt_of\n"
        "from tests.rewards.rules_for_tests import heavy_imports\n"
        "RULES['heavy_imports'] = heavy_imports\n"
        "with RewardScorer(RewardConfig(weights={'heavy_imports': 1.0})) as scorer:\n"
        "    (scored,) = scorer.score([group_of(prompt_of(), 'x')])\n"
        "print('found:', scored.rewards[0].total, scored.rewards[0].reasons['heavy_imports'])\n"
    )
    # No `if __name__` guard: a worker that imported the program would start it again.
    done = subprocess.run(
        [sys.executable, str(program)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "found: 0.0 \n"


def test_512_rollouts_take_well_under_a_second(scorer):
    problems = generate_problems("chain_sum", {}, 32)
    groups = [
        group_of(
            prompt_of(problem.answer, problem.grader, **problem.grader_data),
            *[f"<think>x</think><answer>{int(problem.answer) + g % 2}</answer>" for g in range(16)],
        )
        for problem in problems
    ]
    started = time.monotonic()
    scored = scorer.score(groups)
    # 0.02 s measured on two quiet cores.
    assert time.monotonic() - started < 1.0
    assert totals(scored) == [[2.0, 1.0] * 8] * 32
