"""Prompts with given responses, as rows to learn from.

An example is the rows that are learned from together: one for a sample, two for a pair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from megatron_r1.data.tokenizer import Tokenizer
from megatron_r1.errors import DataError
from megatron_r1.types import TrainRow

Example = tuple[TrainRow, ...]


def response_row(prompt: str, response: str, tokenizer: Tokenizer) -> TrainRow:
    """Prompt, response and end of sequence; the loss is taken on what comes after the prompt."""
    prompt_ids = tokenizer.encode(prompt)
    response_ids = (*tokenizer.encode(response), tokenizer.eos_id)
    tokens_L = torch.tensor(prompt_ids + response_ids)
    return TrainRow(tokens_L=tokens_L, loss_mask_L=torch.arange(len(tokens_L)) >= len(prompt_ids))


def without_long(
    examples: Sequence[Example], path: str | Path, *, max_tokens: int, may_be_none: bool = False
) -> list[Example]:
    """Those of a file whose rows have at most `max_tokens` tokens each.

    Raises:
        DataError: there is none, and there has to be one.
    """
    longest = [max(row.num_tokens for row in example) for example in examples]
    kept = [rows for rows, length in zip(examples, longest, strict=True) if length <= max_tokens]
    if not kept and not may_be_none:
        raise DataError(
            f"every example in {path} is longer than stage.max_tokens = {max_tokens}; the shortest "
            f"of {len(examples)} has {min(longest)} tokens. Set it to that or more"
        )
    return kept
