"""Reports of forked writers."""

from __future__ import annotations

import multiprocessing
import pickle
import queue

import pytest

from megatron_r1.platform.write_results import WriteResults


def test_what_forked_processes_put_arrives_whole_and_once():
    results = WriteResults()
    with pytest.raises(queue.Empty):
        results.get_nowait()
    sizes = [0, 1, 300_000, 5_000_000]
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=lambda size=size: results.put((size, b"x" * size)))
        for size in sizes
        for _ in range(3)
    ]
    for writer in writers:
        writer.start()
    results.put("own")
    for writer in writers:
        writer.join(60)
    found = [results.get_nowait() for _ in range(len(writers) + 1)]
    found.remove("own")
    assert sorted(found) == sorted((size, b"x" * size) for size in sizes for _ in range(3))
    results.put(2)
    assert results.get_nowait() == 2
    with pytest.raises(queue.Empty):
        results.get_nowait()


def test_a_report_that_is_cut_short_is_an_error_and_no_end():
    results = WriteResults()
    results.put("whole")
    results._file.write(pickle.dumps("torn")[:-3])
    assert results.get_nowait() == "whole"
    assert isinstance(results.get_nowait(), OSError)
    with pytest.raises(queue.Empty):
        results.get_nowait()
