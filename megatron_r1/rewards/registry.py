"""Every rule by the name that `reward.weights` uses. To add one, write its file and a line here.

A rule is a pure function of a prompt and one rollout. It returns a value and the reason for it, in
one line. A poor response is worth 0; a rule raises only where it is broken itself. Scoring happens
in other processes: a rule must be importable by name, and `Rollout.logprobs` is empty there.
"""

from __future__ import annotations

from collections.abc import Callable

from megatron_r1.rewards.accuracy import accuracy
from megatron_r1.rewards.format import tag_format
from megatron_r1.types import Prompt, Rollout

Rule = Callable[[Prompt, Rollout], tuple[float, str]]

RULES: dict[str, Rule] = {"accuracy": accuracy, "format": tag_format}
