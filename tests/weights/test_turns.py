"""Turns are handed on with what went wrong in them, and nobody waits for ever."""

from __future__ import annotations

import threading
import time

import pytest
import torch.distributed as dist

from megatron_r1.weights.transport import SendError
from megatron_r1.weights.turns import Turns


def soon(seconds: float) -> float:
    return time.monotonic() + seconds


def test_three_ranks_take_turns_in_order():
    store, order = dist.HashStore(), []

    def be_rank(rank: int) -> None:
        turns = Turns(store, "first")
        for turn in range(rank, 9, 3):
            if turn:
                turns.wait(turn - 1, deadline_s=soon(30))
            order.append(turn)
            if turn < 8:
                turns.end(turn)

    threads = [threading.Thread(target=be_rank, args=(rank,)) for rank in (2, 1, 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert order == list(range(9))
    assert store.num_keys() == 0  # a run of thousands of publishes leaves nothing behind


def test_who_waits_is_told_what_failed():
    turns = Turns(dist.HashStore(), "second")
    turns.end(3, "bucket 4 of 9: http://node7:30000 did not answer")
    with pytest.raises(SendError, match="bucket 4 of 9: http://node7:30000 did not answer"):
        turns.wait(3, deadline_s=soon(30))


def test_a_turn_that_never_ends_has_a_time_limit():
    started_s = time.monotonic()
    with pytest.raises(SendError, match="bucket 6, another rank's, took too long"):
        Turns(dist.HashStore(), "third").wait(5, deadline_s=soon(0.2))
    assert 0.1 < time.monotonic() - started_s < 20


def test_publishes_do_not_see_each_others_turns():
    store = dist.HashStore()
    Turns(store, "fourth").end(0)
    with pytest.raises(SendError, match="took too long"):
        Turns(store, "fifth").wait(0, deadline_s=soon(0.1))
