"""The parts of a response: what was thought, and what was said."""

from __future__ import annotations

from megatron_r1.data.templates import END_THINK, THINK


def reasoning_of(text: str) -> str:
    """What stands before the last ``</think>``, or after an unclosed ``<think>``; else all of it.

    Templates differ in who writes ``<think>``, the prompt or the policy.
    """
    thought, closed, _ = text.rpartition(END_THINK)
    if not closed:
        thought = text
    return thought.replace(THINK, " ").replace(END_THINK, " ")


def final_part_of(text: str) -> str:
    """What stands after the last ``</think>``; without one, all of it."""
    return text.rpartition(END_THINK)[2]
