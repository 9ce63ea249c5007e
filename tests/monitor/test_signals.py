from __future__ import annotations

import pytest

from megatron_r1.config.monitor import MonitorConfig
from megatron_r1.monitor.signals import (
    mixed_script_frac,
    repeated_frac,
    reward_signals,
    style_signals,
)
from megatron_r1.types import (
    FinishReason,
    Prompt,
    Reward,
    Rollout,
    RolloutGroup,
    ScoredGroup,
)


def test_repeated_four_grams_by_hand():
    assert repeated_frac([1, 2, 3]) == 0.0
    assert repeated_frac([1, 2, 3, 4, 5]) == 0.0
    # 1111, 1111, 1111: two of three have been there before
    assert repeated_frac([1] * 6) == pytest.approx(2 / 3)
    # 1212, 2121, 1212, 2121
    assert repeated_frac([1, 2] * 3 + [1]) == 0.5


def test_letters_outside_the_main_script():
    assert mixed_script_frac("So 12 + 3 = 15.") == 0.0
    assert mixed_script_frac("abc 数学") == pytest.approx(2 / 5)
    assert mixed_script_frac("ещё да, yes") == pytest.approx(3 / 8)
    assert mixed_script_frac("= 15") == 0.0


def scored(*parts: dict[str, float], text: str = "ab") -> ScoredGroup:
    prompt = Prompt(id="p", draw=0, question="", text="", token_ids=(1,), answer="", grader="exact")
    rollouts = tuple(
        Rollout(
            sample=g,
            token_ids=(3,) * (4 + g),
            logprobs=(),
            finish_reason=FinishReason.stop,
            weight_version=0,
            text=text,
        )
        for g in range(len(parts))
    )
    rewards = tuple(Reward(total=0.0, parts=each, reasons={}) for each in parts)
    return ScoredGroup(RolloutGroup(prompt, rollouts), rewards)


def test_signals_are_sums_and_counts():
    group = scored(
        {"accuracy": 1.0, "format": 1.0, "helpful": 2.0, "safe": 0.5},
        {"accuracy": 0.0, "format": 1.0, "helpful": -1.0, "safe": 0.5},
    )
    config = MonitorConfig(learned=["helpful", "safe"])
    assert reward_signals([group], config) == {
        "verified": (1.0, 2.0),
        "learned": (2.5 - 0.5, 2.0),
        "learned_square": (6.25 + 0.25, 2.0),
    }
    # Responses of 4 and 5 equal tokens: 0 of 1 and 1 of 2 four-grams.
    assert style_signals([group], config) == {
        "tokens": (9.0, 2.0),
        "repeated_frac": (0.5, 2.0),
        "mixed_frac": (0.0, 2.0),
        "format": (2.0, 2.0),
    }


def test_each_part_is_a_mean_over_the_rollouts_that_have_it():
    """Reasoning prompts are verified, general ones have the part of their own data set's model."""
    groups = [
        scored({"accuracy": 1.0}, {"accuracy": 0.0}),
        scored({"helpful": 2.0}),
        scored({"safe": -1.0}),
    ]
    config = MonitorConfig(learned=["helpful", "safe"])
    assert reward_signals(groups, config) == {
        "verified": (1.0, 2.0),
        "learned": (1.0, 2.0),
        "learned_square": (5.0, 2.0),
    }


def test_parts_that_nobody_scores_give_no_signal():
    signals = reward_signals([scored({"other": 1.0})], MonitorConfig())
    assert signals == {}
