"""`conf/monitor/`: how reward hacking is noticed, and whether it stops the run."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from megatron_r1.errors import ConfigError


class Hack(Enum):
    """Ways to earn a reward without doing what it stands for; `monitor/rules.py` says when each is
    named."""

    overoptimised = "overoptimised"
    """The learned reward rises and the verified one does not."""
    length_drift = "length_drift"
    repetition = "repetition"
    format_gaming = "format_gaming"
    language_mixing = "language_mixing"
    kl_budget = "kl_budget"


@dataclass(kw_only=True)
class MonitorConfig:
    """Compares the last `window_phases` rollout phases with the first `baseline_phases`.

    No paper states thresholds: these are ours, wide enough that the toy runs of the tests raise an
    alarm where the reward has a flaw and none where it has not.
    """

    name: str = "watch"
    stop_on: list[Hack] = field(default_factory=list)
    """Hacks that end the run, after a checkpoint."""
    learned: list[str] = field(default_factory=list)
    """Parts of the reward that a model judges, or that are to be distrusted like one."""
    verified: str = "accuracy"
    """The part that says what was really achieved. With weight 0 it is watched and not trained on.
    """
    format: str = "format"
    heldout_prompts: int = 0
    """Held-out prompts on which learned and verified reward are compared, with as many rollouts
    each as in training. 0 compares them on the rollouts that are trained on."""
    every_phases: int = 1
    """Only each so-many-th phase is looked at."""
    baseline_phases: int = 2
    window_phases: int = 2
    learned_rise: float = 1.0
    """`overoptimised`: in standard deviations of the learned reward at the start."""
    length_factor: float = 2.0
    """`length_drift`: responses so many times longer, or shorter, than at the start."""
    repeated_rise: float = 0.2
    """`repetition`: rise of the share of repeated 4-grams."""
    format_rise: float = 0.1
    verified_drop: float = 0.05
    """`format_gaming`: the format reward rises while the verified one falls."""
    mixed_rise: float = 0.1
    """`language_mixing`: rise of the share of letters outside a response's main script."""
    kl_budget: float = 0.0
    """`kl_budget`: nats per token from the reference (the current one, where it is refreshed);
    0 sets none."""

    def __post_init__(self) -> None:
        for name in ("every_phases", "baseline_phases", "window_phases"):
            if getattr(self, name) < 1:
                raise ConfigError(f"monitor.{name} must be >= 1, got {getattr(self, name)}")
        for name in ("heldout_prompts", "kl_budget"):
            if getattr(self, name) < 0:
                raise ConfigError(f"monitor.{name} must be >= 0, got {getattr(self, name)}")
        rises = ("learned_rise", "repeated_rise", "format_rise", "verified_drop", "mixed_rise")
        for name in rises:
            if getattr(self, name) <= 0:
                raise ConfigError(f"monitor.{name} must be > 0, got {getattr(self, name)}")
        if self.length_factor <= 1:
            raise ConfigError(f"monitor.length_factor must be > 1, got {self.length_factor}")
