"""`conf/rollout/`: how responses are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class RolloutConfig:
    """Sampling in RL. R1: temperature 1.0 (0.7 in stage 4); it states no top-p and top-k."""

    name: str = "inprocess"
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 keeps the whole vocabulary."""
    max_response_tokens: int = 32_768
    """R1-Zero: 32,768 before step 8,200 and 65,536 after."""
    max_batch: int = 256
    """Sequences that decode side by side in each data-parallel replica."""

    def __post_init__(self) -> None:
        if self.temperature <= 0:
            raise ConfigError(
                f"rollout.temperature must be > 0, got {self.temperature}; "
                "rollout.top_k=1 gives greedy decoding"
            )
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"rollout.top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"rollout.top_k must be >= 0, got {self.top_k}")
        for name in ("max_response_tokens", "max_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"rollout.{name} must be >= 1, got {getattr(self, name)}")
