"""From rules to one reward: values, reasons, weights and the total.

DeepSeek-R1 (arXiv:2501.12948v2) Eq. 8 to 10: reward = reasoning + general + language, where
reasoning = rule and general = reward model + format. A prompt of one data set has one of the first
two terms, and which parts make it up is `reward.mixes`; the language term is a part of every mix.
"""

from __future__ import annotations

import dataclasses
import math
import traceback
from collections.abc import Mapping, Sequence
from functools import partial

from megatron_r1.config.reward import RewardConfig
from megatron_r1.errors import ConfigError, UserError
from megatron_r1.rewards.registry import GROUP_RULES, RULES, SETTINGS, GroupRule, Rule
from megatron_r1.types import Prompt, Reward, Rollout, RolloutGroup


class BrokenRuleError(RuntimeError):
    """A rule raised or returned no number. Names rule, prompt and sample; holds the traceback."""


def rules_of(config: RewardConfig) -> dict[str, Rule]:
    """The rules of one rollout that any mix names, with their settings.

    Raises:
        ConfigError: a part is no registered rule, or its rule cannot be imported by a worker.
    """
    known = {**RULES, **GROUP_RULES}
    twice = [name for name in config.models if name in known]
    if twice:
        raise ConfigError(
            f"reward.models names {', '.join(twice)}, which is a rule. Choose another name"
        )
    unknown = [name for name in config.parts if name not in {**known, **config.models}]
    if unknown:
        raise ConfigError(
            f"reward.weights or reward.mixes names unknown rules: {', '.join(unknown)}. Rules: "
            f"{', '.join(known)}; of reward.models: {', '.join(config.models) or 'none'}"
        )
    for name in config.parts:
        if name in known and known[name].__module__ == "__main__":
            raise ConfigError(
                f"reward rule {name!r} is defined in the program that was started, where workers "
                "cannot import it. Move it into a module of its own"
            )
    return {name: _with_settings(name, config) for name in config.parts if name in RULES}


def group_rules_of(config: RewardConfig) -> dict[str, GroupRule]:
    """The rules of a whole group that any mix names."""
    return {name: GROUP_RULES[name] for name in config.parts if name in GROUP_RULES}


def combine(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Sum over parts of weight x value."""
    return sum(weights[name] * value for name, value in parts.items())


def apply_rules(
    prompt: Prompt, rollout: Rollout, rules: Mapping[str, Rule], weights: Mapping[str, float]
) -> Reward:
    """The reward of one rollout, of those rules that have a weight.

    Raises:
        UserError: a rule refuses the prompt's data.
        BrokenRuleError: a rule raised anything else, or its value is not finite.
    """
    judged = {
        name: _apply_rule(name, rule, prompt, rollout)
        for name, rule in rules.items()
        if name in weights
    }
    parts = {name: value for name, (value, _) in judged.items()}
    reasons = {name: reason for name, (_, reason) in judged.items()}
    own_weights = {name: weights[name] for name in parts}
    return Reward(combine(parts, own_weights), parts, reasons, own_weights)


def apply_group_rules(
    group: RolloutGroup,
    rewards: Sequence[Reward],
    rules: Mapping[str, GroupRule],
    weights: Mapping[str, float],
) -> list[Reward]:
    """Rewards with the parts that only a whole group can give."""
    rewards = list(rewards)
    for name, rule in rules.items():
        if name in weights:
            judged = rule(group, rewards)
            rewards = [
                add_part(reward, name, value, reason, weights[name])
                for reward, (value, reason) in zip(rewards, judged, strict=True)
            ]
    return rewards


def add_part(reward: Reward, name: str, value: float, reason: str, weight: float) -> Reward:
    """A reward with one more part, e.g. a reward model's.

    Raises:
        BrokenRuleError: the value is not finite.
    """
    if not math.isfinite(value):
        raise BrokenRuleError(f"reward part {name!r} is {value}, with reason {reason!r}")
    return dataclasses.replace(
        reward,
        total=reward.total + weight * value,
        parts={**reward.parts, name: value},
        reasons={**reward.reasons, name: reason},
        weights={**reward.weights, name: weight},
    )


def _with_settings(name: str, config: RewardConfig) -> Rule:
    if name not in SETTINGS:
        return RULES[name]
    return partial(RULES[name], config=getattr(config, SETTINGS[name]))


def _apply_rule(name: str, rule: Rule, prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    where = f"reward rule {name!r} on prompt {prompt.id}, sample {rollout.sample}"
    try:
        value, reason = rule(prompt, rollout)
    except UserError:
        raise
    except Exception:
        # The traceback travels as text: the original exception may not survive a process boundary.
        raise BrokenRuleError(f"{where}, raised:\n{traceback.format_exc()}") from None
    if not math.isfinite(value):
        raise BrokenRuleError(f"{where}, returned {value}, with reason {reason!r}")
    return float(value), reason
