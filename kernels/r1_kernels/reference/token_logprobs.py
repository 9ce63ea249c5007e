"""Log-probabilities and entropies of tokens from hidden states: the whole matrix of logits."""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    *,
    temperature: float = 1.0,
    vocab_size: int | None = None,
) -> tuple[Tensor, Tensor]:
    """logprobs_T, with gradient, and entropy_T, without, in nats, float32 or float64.

    A target outside the vocabulary gets -inf.
    """
    logits_TV = hidden_TD @ weight_VD.T
    z_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)) / temperature
    num_columns = z_TV.shape[1]
    num_valid = num_columns if vocab_size is None else min(vocab_size, num_columns)
    z_TV = torch.where(torch.arange(num_columns, device=z_TV.device) < num_valid, z_TV, -torch.inf)
    log_p_TV = z_TV.log_softmax(dim=1)
    is_token_T = (targets_T >= 0) & (targets_T < num_valid)
    chosen_T = log_p_TV.gather(1, targets_T.clamp(0, num_columns - 1)[:, None]).squeeze(1)
    entropy_T = torch.special.entr(log_p_TV.detach().exp()).sum(dim=1)
    return torch.where(is_token_T, chosen_T, -torch.inf), entropy_T
