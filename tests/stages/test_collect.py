"""Samples that were written down: read again, shown to a judge."""

from __future__ import annotations

import dataclasses

import pytest

from megatron_r1.config.judge import JudgeConfig
from megatron_r1.errors import DataError, EngineError
from megatron_r1.stages.collect import read_parts, write_lines
from megatron_r1.stages.r1_stage3 import with_verdicts
from tests.rewards.builders import prompt_of
from tests.rewards.judge_server import Reply, judge_server

pytestmark = pytest.mark.megatron
BY_DRAW = {n: dataclasses.replace(prompt_of(), id=f"p/{n}", draw=n) for n in range(40)}


def sample(draw: int, response: str = "it is 3") -> dict:
    parts = {"format": 1.0, "readable": 1.0}
    about = {"draw": draw, "prompt_id": f"p/{draw}", "sample": 0}
    return {**about, "response": response, "parts": parts, "reasons": {}}


def test_any_character_may_be_in_a_response(tmp_path):
    texts = ["a\u2028b", "a\u2029b", "a\x85b", "a\nb\r\n\x0b\x0c\x1c", "half \ud83d"]
    samples = [sample(draw, text) for draw, text in enumerate(texts)]
    write_lines(tmp_path / "part_00000.jsonl", samples[:3])
    write_lines(tmp_path / "part_00001.jsonl", samples[3:])
    assert read_parts(tmp_path, BY_DRAW) == samples


@pytest.mark.parametrize(
    "changed", [{0: BY_DRAW[0]}, {0: BY_DRAW[0], 1: dataclasses.replace(BY_DRAW[1], id="q/1")}]
)
def test_samples_of_other_prompts_are_refused(tmp_path, changed):
    write_lines(tmp_path / "part_00000.jsonl", [sample(0), sample(1)])
    with pytest.raises(DataError, match="of the prompt 'p/1', and prompt 1 .*run.overwrite=true"):
        read_parts(tmp_path, changed)


def test_a_judge_that_is_down_ends_the_run():
    status = 500
    samples = [sample(draw) for draw in BY_DRAW]

    def answer(body: dict) -> Reply:
        return Reply('{"correctness": "correct"}', status=status)

    with judge_server(answer) as server:
        endpoint = JudgeConfig(base_url=server.url, max_retries=0)
        with pytest.raises(EngineError, match=r"judge at .* answer 40 of 40 .*HTTP 500"):
            with_verdicts(samples, BY_DRAW, endpoint)
        status = 200
        judged = with_verdicts(samples, BY_DRAW, endpoint)
    assert {found["parts"]["judged"] for found in judged} == {1.0}
