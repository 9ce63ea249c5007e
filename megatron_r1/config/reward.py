"""`conf/reward/`: which rules score a rollout, and with which weights."""

from __future__ import annotations

from dataclasses import dataclass, field

from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class RewardConfig:
    """Total = sum over parts of weight x value. R1-Zero: accuracy and format, the same weight."""

    name: str = "r1_zero"
    weights: dict[str, float] = field(default_factory=lambda: {"accuracy": 1.0, "format": 1.0})
    """Part -> weight. Parts are the rules registered in `rewards/`. Equal: R1 section 2.2."""
    num_workers: int = 1
    """Processes that score while the policy decodes, for each leader."""
    timeout_s: float = 10.0
    """Limit for one rollout. A rule that exceeds it scores 0, with the reason ``timeout``, and is
    counted in ``reward/timeout_frac``."""

    def __post_init__(self) -> None:
        if not self.weights:
            raise ConfigError(
                "reward.weights is empty: name at least one rule, e.g. {accuracy: 1.0}"
            )
        if self.num_workers < 1:
            raise ConfigError(f"reward.num_workers must be >= 1, got {self.num_workers}")
        if self.timeout_s <= 0:
            raise ConfigError(f"reward.timeout_s must be > 0, got {self.timeout_s}")
