"""CISPO: importance weights are clipped, gradients are not."""

from __future__ import annotations

from torch import Tensor

from megatron_r1.algos.ratios import ratios
from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.rollout_tokens import usable_tokens, weighted_loss
from megatron_r1.config.algo import CispoConfig, Ratio
from megatron_r1.types import LossOutput, MicroBatch


def cispo_loss(logprobs_T: Tensor, micro: MicroBatch, *, config: CispoConfig) -> LossOutput:
    """REINFORCE with clipped importance weights that carry no gradient.

        -sg(clip(ratio, 1 - eps_low, 1 + eps_high)) A log pi

    MiniMax-M1 (arXiv:2506.13585) Eq. 4 and 5: where PPO's minimum would take a token's gradient
    away, often that of a rare and decisive one, here its weight is held at the bound. The value
    means nothing by itself: it is made for its gradient. Arguments, results and errors are those of
    `grpo_loss`.
    """
    tokens = usable_tokens(logprobs_T, micro)
    ratio_K = ratios(tokens, Ratio.token).detach()
    weight_K = ratio_K.clamp(1 - config.clip_eps_low, 1 + config.clip_eps_high)
    loss_K = -weight_K * tokens.advantages_K * tokens.logprobs_K
    metrics = {"algo/clip_frac": mean_parts(weight_K != ratio_K)}
    return weighted_loss(loss_K, tokens, micro, config=config, metrics=metrics)
