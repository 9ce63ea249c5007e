"""Format: 1 where thought and answer are in their tags (arXiv:2501.12948v2, section 2.2)."""

from __future__ import annotations

import re

from megatron_r1.data.templates import ANSWER, END_ANSWER, END_THINK, TAGS, THINK
from megatron_r1.types import Prompt, Rollout

_LAYOUT = re.compile(rf"\s*{THINK}.*{END_THINK}\s*{ANSWER}.*{END_ANSWER}\s*", re.DOTALL)


def tag_format(prompt: Prompt, rollout: Rollout) -> tuple[float, str]:
    """1 for exactly one ``<think>`` block, then exactly one ``<answer>`` block, and only whitespace
    outside them. What the blocks hold does not matter, not even whether they hold anything."""
    for tag in TAGS:
        count = rollout.text.count(tag)
        if count != 1:
            return 0.0, f"{count} {tag} tags, expected 1"
    # Each tag occurs once, so no block can be nested in another here.
    if not _LAYOUT.fullmatch(rollout.text):
        return 0.0, "text outside the blocks, or blocks out of order"
    return 1.0, "one thought, one answer"
