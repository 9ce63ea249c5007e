"""In which order items are drawn, epoch after epoch: a function of seed and number alone, so that
resuming needs no generator's state."""

from __future__ import annotations

import random
from functools import lru_cache


def item_of_draw(draw: int, num_items: int, seed: int) -> int:
    """Which of `num_items` is drawn at this position of the run; each once in an epoch."""
    epoch, position = divmod(draw, num_items)
    return _epoch_order(num_items, seed, epoch)[position]


@lru_cache(maxsize=4)
def _epoch_order(num_items: int, seed: int, epoch: int) -> tuple[int, ...]:
    order = list(range(num_items))
    random.Random(f"{seed}/{epoch}").shuffle(order)
    return tuple(order)
