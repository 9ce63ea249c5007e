"""The ratio between the policy and the one that sampled: of a token, or of its whole response."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.algos.rollout_tokens import RolloutTokens
from megatron_r1.config.algo import Ratio


def ratios(tokens: RolloutTokens, kind: Ratio) -> Tensor:
    """ratio_K: for each usable token the ratio that its advantage is multiplied by.

    - token: pi(o_t) / pi_old(o_t), DeepSeekMath (arXiv:2402.03300) Eq. 3;
    - sequence: pi(o) / pi_old(o), the product over the response, DeepSeek-R1 (arXiv:2501.12948v2)
      Eq. 1 as printed. It leaves any clip range within a few dozen tokens;
    - sequence_mean: (pi(o) / pi_old(o))^(1/|o|), GSPO (arXiv:2507.18071) Eq. 7.

    A response's ratio stands at each of its tokens. Under `LossReduction.rollout_mean` they add up
    to one term for the response, and every token gets the same share of the gradient.
    """
    log_ratio_K = tokens.logprobs_K - tokens.logprobs_old_K
    if kind is Ratio.token:
        return torch.exp(log_ratio_K)
    zeros_S = log_ratio_K.new_zeros(tokens.num_sequences)
    log_ratio_S = zeros_S.index_add(0, tokens.sequences_K, log_ratio_K)
    if kind is Ratio.sequence_mean:
        ones_K = torch.ones_like(log_ratio_K)
        counts_S = zeros_S.index_add(0, tokens.sequences_K, ones_K)
        log_ratio_S = log_ratio_S / counts_S.clamp(min=1)
    return torch.exp(log_ratio_S)[tokens.sequences_K]
