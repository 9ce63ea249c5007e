"""`conf/cluster/`: where the processes run."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class ClusterConfig:
    """This machine, under torchrun or alone."""

    name: str = "local"
    timeout_minutes: float = 30.0
    """A collective that waits longer than this ends the job."""

    def __post_init__(self) -> None:
        if self.timeout_minutes <= 0:
            raise ConfigError(f"cluster.timeout_minutes must be > 0, got {self.timeout_minutes}")
