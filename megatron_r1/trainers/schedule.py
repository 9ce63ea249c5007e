"""The learning rate of each update, as a pure function of its number."""

from __future__ import annotations

import math

from megatron_r1.config.optimizer import DecayStyle, OptimizerConfig


def learning_rate(step: int, num_steps: int, config: OptimizerConfig) -> float:
    """Learning rate of update `step` (from 0) out of `num_steps`.

    Rises linearly to `lr` over `warmup_steps` updates, the first of which is not 0, then stays or
    falls to `min_lr` at the last update.
    """
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    if config.decay is DecayStyle.constant:
        return config.lr
    span = max(1, num_steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    if config.decay is DecayStyle.linear:
        remaining = 1.0 - progress
    else:
        remaining = 0.5 * (1.0 + math.cos(math.pi * progress))
    return config.min_lr + (config.lr - config.min_lr) * remaining
