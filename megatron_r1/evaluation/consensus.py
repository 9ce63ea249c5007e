"""cons@k: whether the answer that most of k samples give is right.

DeepSeek-R1 (arXiv:2501.12948v2) appendix D.1 reports it for AIME with k = 64. It does not state
when two answers are the same, nor what a tie is worth. Here answers are the same when they agree as
normalised text or, for mathematics, in value; all right answers are one. A tie is worth the share
of the leading answers that is right, the mean over breaking it at random, so that the order of
samples never counts. A response without an answer has no vote.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from megatron_r1.rewards.math_answers import is_equivalent
from megatron_r1.rewards.normalise import normalise
from megatron_r1.rewards.powers import is_too_large

Same = Callable[[str, str], bool]


def same_text(first: str, second: str) -> bool:
    """Equal once units, ornaments, white space and case are gone."""
    return _plain(first) == _plain(second)


def same_value(first: str, second: str) -> bool:
    """Equal as text, or by the rule that grades mathematics, either taken for the reference.

    Unbounded in time, as that rule is: call it where it can be stopped.
    """
    if same_text(first, second):
        return True
    if is_too_large(first) or is_too_large(second):
        return False
    return _equals(first, second) or _equals(second, first)


def consensus(answers: Sequence[str | None], is_right: Sequence[bool], same: Same) -> float:
    """From 0 to 1: whether the leading answer is right; between them where a tie decides.

    Args:
        answers: one for each sample, or None where a response gives none.
        is_right: what the accuracy rule said of each.
    """
    votes: list[tuple[str, bool, int]] = []
    for answer, right in zip(answers, is_right, strict=True):
        if answer is None:
            continue
        for index, (leader, leader_right, count) in enumerate(votes):
            if right == leader_right and (right or same(leader, answer)):
                votes[index] = (leader, leader_right, count + 1)
                break
        else:
            votes.append((answer, right, 1))
    most = max((count for _, _, count in votes), default=0)
    leading = [right for _, right, count in votes if count == most]
    return sum(leading) / len(leading) if leading else 0.0


def _plain(answer: str) -> str:
    return "".join(normalise(answer).casefold().split())


def _equals(gold: str, prediction: str) -> bool:
    try:
        return is_equivalent(gold, prediction)
    except ValueError:  # no reference that could be read
        return False
