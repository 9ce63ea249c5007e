"""The noisy synthetic corpus of `stage=tiny_base`: how its writers reason, and how tidily."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class CorpusConfig:
    """How `data/corpus.py` writes one response to each problem."""

    careful_frac: float = 0.8
    """Share of responses that add up term by term. The others guess."""
    slip_frac: float = 0.1
    """Chance that a careful step gets its total wrong. The error is carried on into the answer."""
    stray_frac: float = 0.6
    """Chance that a careful response answers with a number that it met on the way."""
    malformed_frac: float = 0.1
    """Share of responses, of either manner, with broken tags."""
    hasty_spread: int = 9
    """A guess is uniform within this distance of the truth: right once in 2 x 9 + 1 times."""

    def __post_init__(self) -> None:
        for name in ("careful_frac", "slip_frac", "stray_frac", "malformed_frac"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.hasty_spread < 1:
            raise ConfigError(f"hasty_spread must be >= 1, got {self.hasty_spread}")
