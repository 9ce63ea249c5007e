"""From rules to one reward: values, reasons and the weighted total."""

from __future__ import annotations

import math
import traceback
from collections.abc import Mapping

from megatron_r1.config.reward import RewardConfig
from megatron_r1.errors import ConfigError, UserError
from megatron_r1.rewards.registry import RULES, Rule
from megatron_r1.types import Prompt, Reward, Rollout


class BrokenRuleError(RuntimeError):
    """A rule raised or returned no number. Names rule, prompt and sample; holds the traceback."""


def rules_of(config: RewardConfig) -> dict[str, Rule]:
    """The rules that `reward.weights` names.

    Raises:
        ConfigError: a part is no registered rule, or its rule cannot be imported by a worker.
    """
    unknown = [name for name in config.weights if name not in RULES]
    if unknown:
        raise ConfigError(
            f"reward.weights names unknown rules: {', '.join(unknown)}. Rules: {', '.join(RULES)}"
        )
    for name in config.weights:
        if RULES[name].__module__ == "__main__":
            raise ConfigError(
                f"reward rule {name!r} is defined in the program that was started, where workers "
                "cannot import it. Move it into a module of its own"
            )
    return {name: RULES[name] for name in config.weights}


def combine(parts: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Sum over parts of weight x value."""
    return sum(weights[name] * value for name, value in parts.items())


def apply_rules(
    prompt: Prompt, rollout: Rollout, rules: Mapping[str, Rule], weights: Mapping[str, float]
) -> Reward:
    """The reward of one rollout.

    Raises:
        UserError: a rule refuses the prompt's data.
        BrokenRuleError: a rule raised anything else, or its value is not finite.
    """
    judged = {name: _apply_rule(name, rule, prompt, rollout) for name, rule in rules.items()}
    parts = {name: value for name, (value, _) in judged.items()}
    reasons = {name: reason for name, (_, reason) in judged.items()}
    return Reward(total=combine(parts, weights), parts=parts, reasons=reasons)


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
