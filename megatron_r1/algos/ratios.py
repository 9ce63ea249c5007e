"""The ratio between the policy and the one that sampled: of a token, or of its whole response."""

from __future__ import annotations

import torch
from torch import Tensor

from megatron_r1.algos.mismatch import sequence_log_ratio
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
    return torch.exp(
        sequence_log_ratio(log_ratio_K, tokens.sequences_K, tokens.num_sequences, kind)
    )
