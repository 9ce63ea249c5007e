"""A teacher that does not answer ends the run; one that answers badly is left to the rules."""

from __future__ import annotations

import re

import pytest

from megatron_r1.config.sft import TeacherConfig
from megatron_r1.errors import EngineError
from megatron_r1.rewards.teacher import Teacher
from tests.rewards.judge_server import Reply, judge_server

CASES = [(f"what is {n}?", "it is") for n in range(40)]


def teacher_at(url: str, **settings) -> Teacher:
    return Teacher(
        TeacherConfig(enabled=True, base_url=url, max_retries=0, max_parallel=2, **settings)
    )


def test_replies_that_were_cut_off_empty_or_no_text_are_none(tmp_path):
    cache = str(tmp_path / "cache.jsonl")
    replies = {"0": Reply("<think>", finish_reason="length"), "1": Reply(" "), "2": Reply(" yes ")}
    replies["3"] = Reply("half \ud83d")

    def answer(body: dict) -> Reply:
        return replies[re.findall(r"<question>\n(.)", body["messages"][0]["content"])[0]]

    with judge_server(answer) as endpoint:
        texts = teacher_at(endpoint.url, cache_path=cache).rewrite([(str(n), "") for n in range(4)])
    assert texts == [None, None, "yes", None]


def test_a_lost_request_is_none_and_many_are_an_error(tmp_path):
    cache = str(tmp_path / "cache.jsonl")
    failing = {0}

    def answer(body: dict) -> Reply:
        text = body["messages"][0]["content"]
        fails = any(f"what is {n}?" in text for n in failing)
        return Reply("fine", status=500 if fails else 200)

    with judge_server(answer) as endpoint:
        texts = teacher_at(endpoint.url, cache_path=cache).rewrite(CASES)
        assert texts == [None, *["fine"] * 39]
        failing |= set(range(1, 4))
        with pytest.raises(EngineError, match=r"did not answer 4 of 40 requests.*HTTP 500"):
            teacher_at(endpoint.url).rewrite(CASES)
        # What was answered once is not asked again.
        before = len(endpoint.requests)
        failing.clear()
        assert teacher_at(endpoint.url, cache_path=cache).rewrite(CASES) == ["fine"] * 40
        assert len(endpoint.requests) == before + 1
