"""What a teacher writes, in stages 1 and 3: in form or dropped, and known as the teacher's."""

from __future__ import annotations

import dataclasses
import json
import threading

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.config.reward import RewardConfig
from megatron_r1.data.rejection import count_reasons, select
from megatron_r1.data.samples import read_samples
from megatron_r1.rewards.scorer import RewardScorer
from megatron_r1.rewards.teacher import Teacher
from megatron_r1.stages.collect import FILTERS
from megatron_r1.stages.general_samples import general_examples
from megatron_r1.stages.r1_stage1 import answer_missing, rewrite_right_ones, written_by
from tests.rewards.builders import prompt_of
from tests.rewards.judge_server import Reply, judge_server

pytestmark = pytest.mark.megatron
GENERAL = [
    {"question": "tell me about the sea", "response": "<answer>it is blue</answer>"},
    None,
    {"question": "tell me about the sun", "response": "it is hot"},
    {"question": "tell me about the moon", "response": "it is far"},
    {
        "question": "tell me about the sky",
        "response": "it is high",
        "lineage": {"prompt_id": "sky/1", "model": "poet", "model_version": 7, "line": 40},
    },
    {"question": "hello", "response": "hello you", "lineage": {"prompt_id": "hi", "model": "poet"}},
]


def stage_of(*overrides: str):
    return load_config([*overrides, "stage.teacher.enabled=true", "stage.teacher.model=big"]).stage


def test_a_thought_is_in_form_and_readable_or_the_sample_goes(tmp_path):
    lines = [json.dumps(record) + "\n" if record else "\n" for record in GENERAL]
    (tmp_path / "general.jsonl").write_text("".join(lines))

    def think(request: dict) -> Reply:
        text = request["messages"][0]["content"]
        if "the sun" in text:
            return Reply("around and around we go and then " * 20)
        if "the moon" in text:
            return Reply("", finish_reason="length")
        return Reply("<think>they want <answer>words</answer></think>")

    settings = ["stage=r1_stage3", f"stage.general={tmp_path}/general.jsonl"]
    with judge_server(think) as endpoint:
        stage = stage_of(*settings, f"stage.teacher.base_url={endpoint.url}")
        readability = load_config([]).reward.readability
        found = general_examples(
            stage, read_samples(stage.general), tmp_path, readability, threading.Event()
        )
    assert {e["question"].split()[-1]: e["response"] for e in found.examples} == {
        "sea": "<think>they want words</think><answer>it is blue</answer>",
        "moon": "it is far",
        "sky": "<think>they want words</think><answer>it is high</answer>",
        "hello": "hello you",
    }
    assert found.dropped == [
        ({"prompt_id": "general/3", "sample": 0}, "the teacher's thought: repetition")
    ]
    file = {"source": str(tmp_path / "general.jsonl")}
    thought = {"model": "big", "seed": 0, "verdicts": {"origin": "teacher, thought"}}
    poet = {"answer_of": {"model": "poet", "model_version": 7}}
    assert [e["lineage"] for e in found.examples] == [
        {"prompt_id": "general/1", **file, "line": 1, **thought},
        {"prompt_id": "general/4", **file, "line": 4},
        {"prompt_id": "sky/1", **file, "line": 40, **thought,
         "verdicts": {**thought["verdicts"], **poet}},
        {"prompt_id": "hi", **file, "line": 6, "model": "poet"},
    ]  # fmt: skip


def test_a_teacher_that_writes_nothing_is_not_a_wrong_answer(tmp_path):
    """Of two right samples one is rewritten; of two prompts without any, one is answered."""

    def write(request: dict) -> Reply:
        text = request["messages"][0]["content"]
        if "cut off" in text:
            return Reply("<think>", finish_reason="length")
        return Reply("<think>one and two</think><answer>3</answer>")

    texts = {0: "short", 1: "cut off", 2: "short", 3: "cut off"}
    by_draw = {
        draw: dataclasses.replace(prompt_of(), id=f"p/{draw}", draw=draw, question=f"{text}?")
        for draw, text in texts.items()
    }
    samples = [
        {"draw": draw, "prompt_id": f"p/{draw}", "dataset": "", "sample": 0, "response": "x",
         "parts": {"accuracy": float(draw < 2), "format": 1.0, "readable": 1.0}, "reasons": {}}
        for draw in by_draw
    ]  # fmt: skip
    (tmp_path / "few.jsonl").write_text('{"prompt": "1 + 1", "response": "2"}\n')
    with (
        judge_server(write) as endpoint,
        RewardScorer(RewardConfig(num_workers=1).measuring(FILTERS)) as scorer,
    ):
        url = f"stage.teacher.base_url={endpoint.url}"
        stage = stage_of("stage=r1_stage1", url, f"stage.few_shot={tmp_path}/few.jsonl")
        teacher = Teacher(stage.teacher)
        rewritten = rewrite_right_ones(stage, samples, by_draw, teacher, scorer)
        found = select(rewritten)
        del by_draw[1]
        few_shot = read_samples(stage.few_shot)
        asked = select(answer_missing(stage, found, by_draw, teacher, scorer, few_shot))
    assert [s["draw"] for s in (*found.kept, *asked.kept)] == [0, 2]
    nothing = "the teacher wrote nothing"
    assert count_reasons(found.dropped) == {"accuracy": 2, nothing: 1}
    assert count_reasons(asked.dropped) == {nothing: 1}
    origin = {"model": "runs/zero", "model_version": 120}
    assert written_by(stage.teacher, found.kept[0], origin) == {
        "model": "big",
        "model_version": None,
        "seed": 0,
        "more": {"origin": "teacher, rewritten", "rewritten_of": origin},
    }
    more = written_by(stage.teacher, asked.kept[0], origin)["more"]
    assert more == {"origin": "teacher, few-shot"}
