"""Parts, weights and the total."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_r1.config.reward import Reads, RewardConfig, SandboxConfig
from megatron_r1.errors import ConfigError
from megatron_r1.rewards.mix import (
    BrokenRuleError,
    add_part,
    apply_group_rules,
    apply_rules,
    combine,
    group_rules_of,
    rules_of,
)
from tests.rewards.builders import group_of, prompt_of, rollout_of
from tests.rewards.rules_for_tests import broken, not_a_number


def score(prompt, rollout, config):
    return apply_rules(prompt, rollout, rules_of(config), config.weights)


def test_the_total_is_the_weighted_sum():
    # 2 x 1 + 0.5 x 0.25 = 2.125
    assert combine({"a": 1.0, "b": 0.25}, {"a": 2.0, "b": 0.5}) == 2.125


def test_parts_are_unweighted_and_every_part_has_a_reason():
    config = RewardConfig(weights={"accuracy": 1.0, "format": 0.5})
    reward = score(prompt_of("3"), rollout_of("<answer>3</answer>"), config)
    assert reward.total == 1.0
    assert reward.parts == {"accuracy": 1.0, "format": 0.0}
    assert reward.reasons == {
        "accuracy": "right: '3' in the last <answer> block",
        "format": "0 <think> tags, expected 1",
    }


def test_what_measures_is_worked_out_as_what_trains_and_counts_nothing_else():
    trained = RewardConfig(
        weights={"accuracy": 2.0, "helpful": 1.0},
        schedules={"accuracy": {10: 0.5}},
        models={"helpful": "runs/helpful"},
        reads={"helpful": Reads.summary},
        sandbox=SandboxConfig(cpu_s=3.0),
        timeout_s=1.5,
    )
    rules = trained.measuring(["accuracy", "format"], by_dataset={"essays": ["format"]})
    assert rules.weights_at("", 0) == {"accuracy": 1.0, "format": 1.0}
    assert rules.weights_at("essays", 0) == {"format": 1.0}
    assert (rules.models, rules.sandbox, rules.timeout_s) == ({}, trained.sandbox, 1.5)


def test_a_rule_that_is_not_named_is_not_applied():
    config = RewardConfig(weights={"format": 1.0})
    reward = score(prompt_of("3"), rollout_of("<answer>3</answer>"), config)
    assert reward.parts == {"format": 0.0}


def test_an_unknown_part_lists_the_rules():
    with pytest.raises(ConfigError, match="unknown rules: acuracy. Rules: accuracy, format"):
        rules_of(RewardConfig(weights={"acuracy": 1.0, "format": 1.0}))


def test_a_broken_rule_is_named_with_prompt_sample_and_traceback():
    with pytest.raises(BrokenRuleError) as caught:
        apply_rules(prompt_of(), rollout_of("break", sample=4), {"b": broken}, {"b": 1.0})
    message = str(caught.value)
    assert message.startswith("reward rule 'b' on prompt p/1, sample 4, raised:\nTraceback")
    assert "ZeroDivisionError: the rule, not the response" in message


def test_a_value_that_is_no_number_is_a_broken_rule():
    with pytest.raises(BrokenRuleError, match="'n' on prompt p/1, sample 0, returned nan"):
        apply_rules(prompt_of(), rollout_of(""), {"n": not_a_number}, {"n": 1.0})


STAGE_2 = RewardConfig(
    weights={"accuracy": 1.0, "language": 1.0},
    mixes={
        "helpful": {"format": 1.0, "language": 1.0, "length": 0.5, "accuracy": 0.0},
        "safety": {"format": 2.0},
    },
    schedules={"format": {1300: 1.0}},
)


def test_each_data_set_has_its_own_mix_and_its_own_steps():
    # R1's second stage: 1,700 steps, general parts in the last 400 only.
    assert STAGE_2.weights_at("math", 0) == {"accuracy": 1.0, "language": 1.0}
    assert STAGE_2.weights_at("safety", 1299) == {}
    assert STAGE_2.weights_at("safety", 1300) == {"format": 2.0}
    assert STAGE_2.weights_at("helpful", 5)["accuracy"] == 0.0
    assert "format" in STAGE_2.weights_at("helpful", 1699)


def test_rules_of_another_mix_are_not_applied():
    """Workers hold the rules of every mix; a prompt is judged by those of its own."""
    weights = STAGE_2.weights_at("safety", 1500)
    group = group_of(prompt_of("3"), "<answer>3</answer>", "<answer>3</answer>")
    rewards = [apply_rules(group.prompt, r, rules_of(STAGE_2), weights) for r in group.rollouts]
    rewards = apply_group_rules(group, rewards, group_rules_of(STAGE_2), weights)
    assert [reward.parts for reward in rewards] == [{"format": 0.0}] * 2


def test_factors_change_at_their_steps():
    config = RewardConfig(weights={"format": 2.0}, schedules={"format": {10: 1.0, 20: 0.5, 30: 0}})
    weights = [config.weights_at("", step).get("format", 0.0) for step in (0, 9, 10, 19, 20, 30)]
    assert weights == [0.0, 0.0, 2.0, 2.0, 1.0, 0.0]


def test_equations_8_to_10_from_parts():
    # general = reward model + format; language on top: 0.7 + 1 + 0.9 = 2.6
    reward = apply_rules(
        prompt_of(),
        rollout_of("<think>we add</think><answer>3</answer>"),
        rules_of(RewardConfig(weights={"format": 1.0})),
        {"format": 1.0},
    )
    reward = add_part(reward, "helpful", 0.7, "reward model", 1.0)
    reward = add_part(reward, "language", 0.9, "9 of 10 words", 1.0)
    assert reward.total == pytest.approx(2.6)
    assert reward.weights == {"format": 1.0, "helpful": 1.0, "language": 1.0}
    assert reward.total == pytest.approx(combine(reward.parts, reward.weights))
    with pytest.raises(BrokenRuleError, match="'helpful' is nan"):
        add_part(reward, "helpful", float("nan"), "overflow", 1.0)


def test_the_length_part_is_added_to_a_whole_group():
    group = group_of(prompt_of("3"), "<answer>3</answer>", "<answer>3</answer> and more")
    longer = dataclasses.replace(group.rollouts[1], token_ids=(1, 2, 3, 4))
    group = dataclasses.replace(group, rollouts=(group.rollouts[0], longer))
    config = RewardConfig(weights={"accuracy": 1.0, "length": 0.5})
    rewards = [score(group.prompt, rollout, config) for rollout in group.rollouts]
    with_length = apply_group_rules(group, rewards, group_rules_of(config), config.weights)
    # lambda is 0.5 and -0.5; 1 + 0.5 x lambda
    assert [reward.total for reward in with_length] == [1.25, 0.75]
    assert with_length[0].reasons["length"] == "right, 2 tokens of 2 to 4"


def test_a_schedule_of_a_part_without_a_weight_is_refused():
    with pytest.raises(ConfigError, match="names parts without a weight: helpfull"):
        RewardConfig(schedules={"helpfull": {1300: 1.0}})
    with pytest.raises(ConfigError, match="must map steps >= 0"):
        RewardConfig(schedules={"format": {-400: 1.0}})
