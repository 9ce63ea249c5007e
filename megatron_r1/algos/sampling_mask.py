"""Probabilities over the tokens that top-p and top-k left to choose from.

A token that was drawn under a truncation has a probability among the tokens that were kept, and a
policy compared with the one that drew it is compared over the same tokens (keep sampling mask,
DeepSeek-V3.2, arXiv:2512.02556).
"""

from __future__ import annotations

import torch
from torch import Tensor


def kept_columns(
    counts_T: Tensor,
    ids_J: Tensor,
    predicted_t: Tensor,
    *,
    vocab_start: int,
    num_columns: int,
) -> Tensor:
    """bool, [t, v]: which columns of a vocabulary shard each position may predict.

    Args:
        counts_T: how many tokens were kept where each token of the stream was drawn; 0: all.
        ids_J: those tokens, end to end.
        predicted_t: which token of the stream each held position predicts; -1 for padding.
        vocab_start: the shard's first token.
    """
    num_tokens, device = counts_T.numel(), counts_T.device
    place_T = torch.full((num_tokens,), -1, device=device)
    held_t = (predicted_t >= 0).nonzero().squeeze(1)
    place_T[predicted_t[held_t]] = held_t
    rows_J = place_T.repeat_interleave(counts_T.long())
    columns_J = ids_J - vocab_start
    here_J = (rows_J >= 0) & (columns_J >= 0) & (columns_J < num_columns)
    kept_tv = torch.zeros(len(predicted_t), num_columns, dtype=torch.bool, device=device)
    kept_tv[rows_J[here_J], columns_J[here_J]] = True
    is_masked_t = torch.zeros(len(predicted_t), dtype=torch.bool, device=device)
    is_masked_t[place_T[(counts_T > 0) & (place_T >= 0)]] = True
    return kept_tv | ~is_masked_t[:, None]
