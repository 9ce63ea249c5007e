"""`conf/optimizer/`: Adam and its learning-rate schedule."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from megatron_r1.errors import ConfigError


class DecayStyle(Enum):
    """Shape of the learning rate after warm-up; Megatron-Core's names."""

    constant = "constant"
    linear = "linear"
    cosine = "cosine"


@dataclass(kw_only=True)
class OptimizerConfig:
    """AdamW over the distributed optimizer. R1 states the learning rate (3e-6) and nothing else."""

    name: str = "adam"
    lr: float = 3e-6
    min_lr: float = 0.0
    warmup_steps: int = 0
    decay: DecayStyle = DecayStyle.constant
    beta1: float = 0.9
    beta2: float = 0.95
    """0.9 and 0.95 are DeepSeek-V3's (arXiv:2412.19437 section 4.2)."""
    eps: float = 1e-8
    weight_decay: float = 0.0
    bf16_moments: bool = False
    """Adam's moments in bfloat16, as DeepSeek-V3's were (V3 report section 3.3.3). Transformer
    Engine's Adam does that; without it the run stops."""
    clip_grad: float = 1.0
    """Largest global gradient norm (V3 report section 4.2)."""

    def __post_init__(self) -> None:
        for name in ("lr", "clip_grad", "eps"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("min_lr", "warmup_steps", "weight_decay"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be >= 0, got {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name} must be in [0, 1), got {getattr(self, name)}")
