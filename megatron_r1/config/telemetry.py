"""`conf/telemetry/`: what a run writes about itself."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class TelemetryConfig:
    """Files of the run directory, and the progress line."""

    name: str = "default"
    tensorboard: bool = True
    curves_every_steps: int = 50
    """`curves.png` is drawn this often, and at the end."""
    rollout_samples: int = 4
    """Groups of each phase whose texts are written to `rollouts/`; -1 writes all. How often each
    prompt was solved is in `pass_counts/` of all."""
    progress: bool = True
    """A live line on a terminal; a plain line every `progress_every_s` elsewhere."""
    progress_every_s: float = 10.0
    stragglers_every_steps: int = 100
    """Name the slowest rank this often, in rollouts and in a small matrix product; 0 never."""

    def __post_init__(self) -> None:
        if self.curves_every_steps < 1:
            raise ConfigError(
                f"telemetry.curves_every_steps must be >= 1, got {self.curves_every_steps}"
            )
