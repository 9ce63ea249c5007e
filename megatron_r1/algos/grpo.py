"""The clipped surrogate: GRPO, and the objectives that differ from it by a setting."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.algos.ratios import ratios
from megatron_r1.algos.reduce import mean_parts
from megatron_r1.algos.rollout_tokens import usable_tokens, weighted_loss
from megatron_r1.config.algo import GrpoConfig
from megatron_r1.types import LossOutput, MicroBatch


def grpo_loss(logprobs_T: Tensor, micro: MicroBatch, *, config: GrpoConfig) -> LossOutput:
    """Clipped policy loss with a KL penalty to the reference policy.

        -min(ratio A, clip(ratio, 1 - eps_low, 1 + eps_high) A) + beta KL(pi || pi_ref)

    DeepSeekMath (arXiv:2402.03300) Eq. 3, with DeepSeek-R1's constants (arXiv:2501.12948v2 section
    3.2.1). Where the defaults depart from what is printed:

    - R1 Eq. 1 writes one probability ratio per rollout; ours is per token, as in DeepSeekMath and
      as R1's remark on clipped *tokens* implies. A product over 10,000 tokens cannot be clipped at
      10. `Ratio.sequence` is Eq. 1 as printed.
    - R1 Eq. 1 has no mean over the tokens of a rollout. Ours is whatever weights the tokens were
      given (`algos/reduce.py`).

    Args:
        logprobs_T: nats, float32; the only input that carries a gradient.
        micro: whole sequences; `logprobs_ref_T` is read only if `config.kl_beta` > 0. Tokens whose
            rollout or old log-probability is not finite are left out of everything and counted.
    Returns:
        This micro-batch's share of the step's loss, to be added to the others', and metrics, which
        include rollouts that were left out as stale.
    Raises:
        ValueError: logprobs_T and the tensors of `micro` differ in shape; the message lists all.
    """
    tokens = usable_tokens(logprobs_T, micro)
    ratio_K = ratios(tokens, config.ratio)
    clipped_K = ratio_K.clamp(1 - config.clip_eps_low, 1 + config.clip_eps_high)
    unclipped_K = ratio_K * tokens.advantages_K
    surrogate_K = torch.minimum(unclipped_K, clipped_K * tokens.advantages_K)
    metrics = {"algo/clip_frac": mean_parts(surrogate_K < unclipped_K)}
    return weighted_loss(-surrogate_K, tokens, micro, config=config, metrics=metrics)
