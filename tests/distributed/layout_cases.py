"""Which layouts the layout tests go through."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator
from typing import Any

Case = dict[str, Any]
"""Settings of `conf/parallel`, those that differ from 1."""


OTHER_FAMILIES: dict[str, tuple[Case, ...]] = {
    # Norms on q and k, whose weights every tensor rank meets with its own heads.
    "qwen3": ({"tensor": 2}, {"tensor": 2, "sequence": False}),
    # Softmax router; experts whole on each tensor rank, and spread.
    "qwen3_moe": ({"tensor": 2, "expert_tensor": 1}, {"expert": 2}),
    # Queries without a latent.
    "moonlight": ({"tensor": 2, "expert_tensor": 2},),
}
"""What sets them apart, with two processes; the rest is as in tiny_v3 and tiny_dense."""


def all_cases(world_size: int, model: str) -> Iterator[Case]:
    """Every combination of degrees that the world size and the tiny models allow.

    The models have 5 layers, 4 heads, 8 experts or 2 key heads.
    """
    degrees = [d for d in (1, 2, 4, 8) if d <= world_size]
    is_sparse = model == "tiny_v3"
    axes = {
        "tensor": [d for d in degrees if d <= (4 if is_sparse else 2)],
        "pipeline": [d for d in degrees if d <= 4],
        "virtual_pipeline": [1, 2],
        "context": [d for d in degrees if d <= 4],
        "expert": degrees if is_sparse else [1],
        "expert_tensor": [d for d in degrees if d <= 4] if is_sparse else [1],
        "sequence": [None] if is_sparse else [None, False],
        "recompute": [None, "selective", "full"],
    }
    for values in itertools.product(*axes.values()):
        case = dict(zip(axes, values, strict=True))
        if _is_possible(case, world_size):
            yield {name: value for name, value in case.items() if value not in (1, None)}


def _is_possible(case: Case, world_size: int) -> bool:
    stages, chunks = case["pipeline"], case["virtual_pipeline"]
    return (
        world_size % (case["tensor"] * case["context"] * stages) == 0
        and world_size % (case["expert"] * case["expert_tensor"] * stages) == 0
        and (chunks == 1 or stages > 1)
        and stages * chunks <= 5
        and (case["sequence"] is None or case["tensor"] > 1)
    )


def draw_cases(world_size: int, model: str, count: int) -> list[Case]:
    """`count` of them at random, the same ones every time; rarer settings come first.

    Each draw takes one of the cases with the most settings that no earlier draw had.
    """
    rng = random.Random(f"{world_size} {model}")
    left = list(all_cases(world_size, model))
    rng.shuffle(left)
    seen: set[tuple[str, Any]] = set()
    drawn: list[Case] = []
    while left and len(drawn) < count:
        best = max(left, key=lambda case: len(settings(case, world_size) - seen))
        if not settings(best, world_size) - seen:
            best = left[0]
        left.remove(best)
        drawn.append(best)
        seen |= settings(best, world_size)
    return drawn


def settings(case: Case, world_size: int) -> set[tuple[str, Any]]:
    """What a case sets, and the data-parallel degree that follows."""
    degrees = (case.get(name, 1) for name in ("tensor", "pipeline", "context"))
    return {*case.items(), ("data", world_size // math.prod(degrees))}
