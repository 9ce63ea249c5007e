"""Every rule by the name that `reward.weights` uses. To add one, write its file and a line here.

A rule is a pure function of a prompt and one rollout. It returns a value and the reason for it, in
one line. A poor response is worth 0; a rule raises only where it is broken itself. Scoring happens
in other processes: a rule must be importable by name, and `Rollout.logprobs` is empty there. A rule
with settings takes them as ``config``; `SETTINGS` names the field of `RewardConfig` that has them.

A group rule judges all responses to one prompt together, after the others, and sees their parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_r1.rewards.accuracy import accuracy
from megatron_r1.rewards.format import tag_format
from megatron_r1.rewards.language import language
from megatron_r1.rewards.length import length
from megatron_r1.rewards.overlong import overlong
from megatron_r1.rewards.readable import readable
from megatron_r1.rewards.repetition import repetition
from megatron_r1.types import Prompt, Reward, Rollout, RolloutGroup

Rule = Callable[[Prompt, Rollout], tuple[float, str]]
GroupRule = Callable[[RolloutGroup, Sequence[Reward]], list[tuple[float, str]]]

RULES: dict[str, Callable[..., tuple[float, str]]] = {
    "accuracy": accuracy,
    "format": tag_format,
    "language": language,
    "repetition": repetition,
    "overlong": overlong,
    "readable": readable,
}
SETTINGS = {
    "accuracy": "sandbox",
    "repetition": "repetition",
    "overlong": "overlong",
    "readable": "readability",
}
GROUP_RULES: dict[str, GroupRule] = {"length": length}
