"""Samples that were written down: read again, shown to a judge."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import threading
import time
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist

from megatron_r1.config.judge import JudgeConfig
from megatron_r1.config.load import load_config
from megatron_r1.data.samples import read_samples
from megatron_r1.errors import DataError, EngineError, StoppedEarly
from megatron_r1.rewards.judge import ask_all
from megatron_r1.stages import collect
from megatron_r1.stages.collect import read_parts, while_main_works, write_lines
from megatron_r1.stages.r1_stage3 import with_verdicts, write_sft_set
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


def test_all_samples_of_stage_3_are_kept_or_dropped_with_a_reason(tmp_path):
    """6 right samples beside 2 others, at a ratio of 1: 4 of reasoning are too many."""
    model, parts, data = tmp_path / "model", tmp_path / "parts", tmp_path / "data"
    model.mkdir()
    (model / "config.json").write_text("{}")
    scored = {"format": 1.0, "readable": 1.0, "accuracy": 1.0}
    found = [{**sample(draw, f"it is {draw}"), "parts": scored} for draw in range(6)]
    write_lines(parts / "part_00000.jsonl", [*found, {**found[0], "sample": 1}])
    write_lines(tmp_path / "general.jsonl", [{"prompt": f"{n}?", "response": "-"} for n in "ab"])
    config = load_config(
        ["stage=r1_stage3", f"stage.collect.source={model}", "stage.reasoning_per_general=1"]
        + [f"stage.general={tmp_path}/general.jsonl"]
    )
    session = SimpleNamespace(config=config)
    prompts, general = list(BY_DRAW.values()), read_samples(config.stage.general)
    table = write_sft_set(
        session, config.stage, prompts, parts, data, threading.Event(), general=general
    )
    rows = [line.split("|")[1:3] for line in table.splitlines()[2:]]
    counts = {what.strip(): count.strip() for what, count in rows}
    assert counts == {
        "samples": "9",
        "dropped: too many of reasoning": "4",
        "dropped: the same text again": "1",
        "kept": "4",
    }
    dropped = [json.loads(line) for line in (data / "dropped.jsonl").read_text().splitlines()]
    assert len(dropped) == 5 and dropped[-1].keys() == {"prompt_id", "sample", "reason"}


def wait_as(rank: int, store: str, found) -> None:
    """Three waits of one of two ranks: for a result, for an error, and until rank 1 is to stop."""
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    collect._POLL_S = 0.1
    asked_to_stop, asking_ended = threading.Event(), threading.Event()

    def signal_to_stop() -> int:
        number = torch.tensor(10 if rank == 1 and asked_to_stop.is_set() else 0)
        dist.all_reduce(number, dist.ReduceOp.MAX)
        return int(number)

    session = SimpleNamespace(
        job=SimpleNamespace(between_loops=lambda: None, signal_to_stop=signal_to_stop)
    )

    def slowly(given_up: threading.Event) -> str:
        time.sleep(0.5)
        return f"from {dist.get_rank()}"

    def fail(given_up: threading.Event) -> str:
        raise DataError("no sample")

    def ask_on(given_up: threading.Event) -> None:
        try:
            ask_all(lambda _: time.sleep(0.1), range(10_000), 1, given_up)
        except StoppedEarly:
            ended.append("the asking")
            asking_ended.set()
            raise

    said, ended = [while_main_works(session, slowly)], []
    try:
        while_main_works(session, fail)
    except DataError as error:
        said.append(str(error))
    asked_to_stop.set()
    try:
        while_main_works(session, ask_on)
    except StoppedEarly as reason:
        said.append(str(reason).partition(" ")[0])
    if rank == 0:
        asking_ended.wait(30)
    found.put((rank, [*said, *ended]))
    dist.barrier()
    dist.destroy_process_group()


def test_two_ranks_wait_for_one_that_works(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    found = spawn.Queue()
    ranks = [
        spawn.Process(target=wait_as, args=(rank, str(tmp_path / "store"), found))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    said = dict(found.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    same = ["from 0", "no sample", "SIGUSR1"]
    assert said == {0: [*same, "the asking"], 1: same}
