"""The loss that a configuration names."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from megatron_r1.algos.cispo import cispo_loss
from megatron_r1.algos.grpo import grpo_loss
from megatron_r1.algos.kl_penalty import kl_penalised_loss
from megatron_r1.config.algo import AlgoConfig, CispoConfig, GrpoConfig, KlPenaltyConfig
from megatron_r1.types import LossOutput, MicroBatch


def policy_loss(
    config: AlgoConfig, *, kl_coefficient: float | None
) -> Callable[[Tensor, MicroBatch], LossOutput]:
    """The loss on a micro-batch of rollouts.

    Args:
        kl_coefficient: of KL(old || policy); `KlPenaltyConfig` alone needs one.
    """
    match config:
        case GrpoConfig():
            return partial(grpo_loss, config=config)
        case CispoConfig():
            return partial(cispo_loss, config=config)
        case KlPenaltyConfig():
            assert kl_coefficient is not None, "the loop starts with config.initial_coefficient"
            return partial(kl_penalised_loss, config=config, coefficient=kl_coefficient)
        case _:
            raise TypeError(f"no loss for {type(config).__name__}")
