"""What the monitor looks at, as sums over rollouts that add up over replicas."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Sequence

from megatron_r1.config.monitor import MonitorConfig
from megatron_r1.types import ScoredGroup

NGRAM = 4

LEARNED, LEARNED_SQUARE, VERIFIED = "learned", "learned_square", "verified"
FORMAT, TOKENS, REPEATED, MIXED, KL = "format", "tokens", "repeated_frac", "mixed_frac", "kl_ref"


def style_signals(
    scored: Sequence[ScoredGroup], config: MonitorConfig
) -> dict[str, tuple[float, float]]:
    """How responses are written: length, repetition, scripts, and the format reward."""
    rollouts = [rollout for group in scored for rollout in group.group.rollouts]
    count = float(len(rollouts))
    signals = {
        TOKENS: (float(sum(len(rollout.token_ids) for rollout in rollouts)), count),
        REPEATED: (sum(repeated_frac(rollout.token_ids) for rollout in rollouts), count),
        MIXED: (sum(mixed_script_frac(rollout.text) for rollout in rollouts), count),
    }
    return signals | _part(scored, config.format, FORMAT)


def reward_signals(
    scored: Sequence[ScoredGroup], config: MonitorConfig
) -> dict[str, tuple[float, float]]:
    """The learned reward, with its square, and the verified one, each of the rollouts that have it:
    data sets differ in their parts, and a schedule may not have begun."""
    signals = _part(scored, config.verified, VERIFIED)
    values = [
        sum(reward.parts[part] for part in config.learned if part in reward.parts)
        for group in scored
        for reward in group.rewards
        if any(part in reward.parts for part in config.learned)
    ]
    if values:
        count = float(len(values))
        signals[LEARNED] = (sum(values), count)
        signals[LEARNED_SQUARE] = (sum(value * value for value in values), count)
    return signals


def _part(scored: Sequence[ScoredGroup], part: str, name: str) -> dict[str, tuple[float, float]]:
    values = [
        reward.parts[part] for group in scored for reward in group.rewards if part in reward.parts
    ]
    return {name: (sum(values), float(len(values)))} if values else {}


def repeated_frac(token_ids: Sequence[int]) -> float:
    """The share of a response's 4-grams that have occurred in it before; 0 where it has none."""
    ngrams = [tuple(token_ids[i : i + NGRAM]) for i in range(len(token_ids) - NGRAM + 1)]
    return 1 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def mixed_script_frac(text: str) -> float:
    """The share of letters that are not of the response's commonest script; 0 without letters.

    A script is the first word of a letter's Unicode name: LATIN, CJK, CYRILLIC, GREEK. Japanese
    counts as mixed by itself: what the rules judge is a rise.
    """
    scripts = Counter(
        unicodedata.name(letter, "UNKNOWN").partition(" ")[0] for letter in text if letter.isalpha()
    )
    total = sum(scripts.values())
    return 1 - max(scripts.values()) / total if total else 0.0
