"""Log-probabilities of a whole stream: shifted, taken and aligned, as trainers do it in parts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from megatron_r1.algos.logprobs import align_to_tokens, next_tokens, target_logprobs


def logprobs_and_entropy(
    logits_Tv: Tensor, tokens_T: Tensor, positions_T: Tensor, **more: Any
) -> tuple[Tensor, Tensor]:
    logprobs_T, entropy_T = target_logprobs(logits_Tv, next_tokens(tokens_T), **more)
    return align_to_tokens(logprobs_T, positions_T), align_to_tokens(entropy_T, positions_T)


def token_logprobs(logits_Tv: Tensor, tokens_T: Tensor, positions_T: Tensor, **more: Any) -> Tensor:
    return logprobs_and_entropy(logits_Tv, tokens_T, positions_T, **more)[0]
