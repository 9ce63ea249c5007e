"""What a reward model reads: a prompt, a response or a part of it, and the end of sequence."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from megatron_r1.config.reward import Reads
from megatron_r1.data.templates import END_THINK, THINK
from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.types import TrainRow


def scored_row(
    prompt_ids: Sequence[int],
    response: str,
    reads: Reads,
    tokenizer: Tokenizer,
    *,
    label: float = 0.0,
    max_tokens: int | None = None,
) -> TrainRow:
    """A row whose score is read at its end of sequence, in training and in RL alike.

    Args:
        label: what the score is trained towards; see `TrainRow.label`.
        max_tokens: the end of a longer response is cut off, the end of sequence stays; None cuts
            nothing.
    """
    text = summary_of(response) if reads is Reads.summary else response
    ids = (*prompt_ids, *tokenizer.encode(text))
    if max_tokens is not None:
        ids = ids[: max_tokens - 1]
    tokens_L = torch.tensor((*ids, tokenizer.eos_id))
    is_end_L = torch.arange(len(tokens_L)) == len(tokens_L) - 1
    return TrainRow(tokens_L=tokens_L, loss_mask_L=is_end_L, label=label)


def summary_of(text: str) -> str:
    """What stands after the last ``</think>``, stripped; nothing where a thought was begun and not
    ended; without either tag all of it."""
    _, ended, summary = text.rpartition(END_THINK)
    if not ended and THINK in text:
        return ""
    return summary.strip()
