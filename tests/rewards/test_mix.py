"""Parts, weights and the total."""

from __future__ import annotations

import pytest

from megatron_r1.config.reward import RewardConfig
from megatron_r1.errors import ConfigError
from megatron_r1.rewards.mix import BrokenRuleError, apply_rules, combine, rules_of
from tests.rewards.builders import prompt_of, rollout_of
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
