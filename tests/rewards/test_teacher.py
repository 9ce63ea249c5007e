"""A teacher that does not answer ends the run; one that answers badly is left to the rules."""

from __future__ import annotations

import re

import pytest

from megatron_r1.config.sft import TeacherConfig
from megatron_r1.errors import EngineError
from megatron_r1.rewards.teacher import Teacher
from tests.rewards.judge_server import Reply, judge_server

FINE = "<think>so</think><answer>fine</answer>"
CASES = [(f"what is {n}?", "it is") for n in range(40)]


def teacher_at(url: str, **settings) -> Teacher:
    return Teacher(
        TeacherConfig(enabled=True, base_url=url, max_retries=0, max_parallel=2, **settings)
    )


def test_replies_that_were_cut_off_empty_or_no_text_are_none(tmp_path):
    cache = str(tmp_path / "cache.jsonl")
    replies = {"0": Reply("<think>", finish_reason="length"), "1": Reply(" ")}
    replies |= {"2": Reply(" <think>yes "), "3": Reply("<think>half \ud83d")}

    def answer(body: dict) -> Reply:
        return replies[re.findall(r"<question>\n(.)", body["messages"][0]["content"])[0]]

    with judge_server(answer) as endpoint:
        texts = teacher_at(endpoint.url, cache_path=cache).rewrite([(str(n), "") for n in range(4)])
    assert texts == [None, None, "<think>yes", None]


def test_a_teacher_that_refuses_ends_it_and_a_better_one_is_asked(tmp_path):
    """20 of 40 replies out of form are left to the rules; 21 end it, and none of them is kept."""
    cache = str(tmp_path / "cache.jsonl")
    refuses = {f"what is {n}?" for n in range(21)}

    def answer(body: dict) -> Reply:
        text = body["messages"][0]["content"]
        return Reply("I am sorry, bla" if any(q in text for q in refuses) else FINE)

    with judge_server(answer) as endpoint:
        teacher = teacher_at(endpoint.url, cache_path=cache)
        with pytest.raises(EngineError, match=r"21 of 40 .*refusal 21.*: 'I am sorry, bla'"):
            teacher.rewrite(CASES)
        with pytest.raises(EngineError, match=r"21 of 21 requests"):
            teacher_at(endpoint.url).think_first([(question, "4") for question in refuses])
        refuses.remove("what is 0?")
        texts = teacher_at(endpoint.url, cache_path=cache).rewrite(CASES)
        assert texts == [FINE, *["I am sorry, bla"] * 20, *[FINE] * 19]
        assert len(endpoint.requests) == 40 + 21 + 21


def test_a_lost_request_is_none_and_many_are_an_error(tmp_path):
    cache = str(tmp_path / "cache.jsonl")
    failing = {0}

    def answer(body: dict) -> Reply:
        text = body["messages"][0]["content"]
        fails = any(f"what is {n}?" in text for n in failing)
        return Reply(FINE, status=500 if fails else 200)

    with judge_server(answer) as endpoint:
        texts = teacher_at(endpoint.url, cache_path=cache).rewrite(CASES)
        assert texts == [None, *[FINE] * 39]
        failing |= set(range(1, 4))
        with pytest.raises(EngineError, match=r"did not answer 4 of 40 requests.*HTTP 500"):
            teacher_at(endpoint.url).rewrite(CASES)
        # What was answered once is not asked again.
        before = len(endpoint.requests)
        failing.clear()
        assert teacher_at(endpoint.url, cache_path=cache).rewrite(CASES) == [FINE] * 40
        assert len(endpoint.requests) == before + 1
