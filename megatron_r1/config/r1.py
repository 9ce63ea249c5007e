"""Reinforcement learning of DeepSeek-R1, beside R1-Zero's: `stage=r1_stage2` and `r1_stage4`."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.config.stage import R1ZeroConfig
from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class R1Stage2Config(R1ZeroConfig):
    """Reasoning RL (arXiv:2501.12948v2 3.2.1): R1-Zero's settings, and language consistency beside
    its rewards, summed."""

    name: str = "r1_stage2"
    num_steps: int = 2_496
    """Not stated; our choice. R1's 80 hours (B.4.4) are some 4,200 updates at R1-Zero's pace of 198
    hours for 10,400; stage 4 takes 1,700 of them, and a phase makes 16."""


@dataclass(kw_only=True)
class R1Stage4Config(R1ZeroConfig):
    """RL for all scenarios (arXiv:2501.12948v2 3.2.2). Most settings are those of stage 2; the
    temperature, 0.7, is in conf/stage/r1_stage4.yaml."""

    name: str = "r1_stage4"
    num_steps: int = 1_700
    preference_steps: int = 400
    """General prompts, those whose data set has a mix of its own in `reward.mixes`, and reward
    models come in for the last so many updates: longer, and the policy learns to please them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.preference_steps <= self.num_steps:
            raise ConfigError(
                f"preference_steps = {self.preference_steps} must lie between 0 and num_steps = "
                f"{self.num_steps}"
            )

    @property
    def general_from_step(self) -> int:
        """Updates that are made on reasoning prompts alone."""
        return self.num_steps - self.preference_steps

    def steps_in_phase(self, step: int) -> int:
        steps = super().steps_in_phase(step)
        until = self.general_from_step - step
        return min(steps, until) if until > 0 else steps
