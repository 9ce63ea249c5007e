"""Length: among the responses to one prompt, shorter right ones are worth more."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_r1.types import Reward, RolloutGroup


def length(group: RolloutGroup, rewards: Sequence[Reward]) -> list[tuple[float, str]]:
    """lambda for a right response, min(0, lambda) for a wrong one, from -0.5 to 0.5.

    Kimi k1.5 (arXiv:2501.12599v1) section 2.3.3: lambda = 0.5 - (len - min_len) / (max_len -
    min_len), over the responses of one prompt. All are worth 0 where all are equally long. Lengths
    are in tokens. A response is right where its part `accuracy` is 1.
    """
    lengths = [len(rollout.token_ids) for rollout in group.rollouts]
    shortest, longest = min(lengths), max(lengths)
    if shortest == longest:
        return [(0.0, f"all have {longest} tokens")] * len(lengths)
    judged = []
    for tokens, reward in zip(lengths, rewards, strict=True):
        factor = 0.5 - (tokens - shortest) / (longest - shortest)
        is_right = reward.parts["accuracy"] >= 1.0
        verdict = "right" if is_right else "wrong"
        judged.append(
            (
                factor if is_right else min(0.0, factor),
                f"{verdict}, {tokens} tokens of {shortest} to {longest}",
            )
        )
    return judged
