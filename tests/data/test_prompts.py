"""Which problems, in which order, again after a restart."""

from __future__ import annotations

import dataclasses
import json

import pytest

from megatron_r1.config.data import BadLines, DataConfig, PromptSourceKind
from megatron_r1.data.prompts import check_source, open_prompts
from megatron_r1.errors import ConfigError, DataError
from tests.conftest import ONE_DIGIT

GYM = DataConfig(task_options=ONE_DIGIT, num_problems=400, heldout_problems=20, corpus_frac=0.4)


def jsonl_config(path, **settings) -> DataConfig:
    settings = {"heldout_problems": 1, "max_prompt_tokens": 512, "template": "plain", **settings}
    return DataConfig(source=PromptSourceKind.jsonl, path=str(path), **settings)


def write_questions(path, questions):
    lines = [json.dumps({"question": question, "answer": "0"}) for question in questions]
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_a_prompt_carries_what_policy_and_grader_need(tokenizer):
    prompt = open_prompts(GYM, tokenizer, seed=1).take(1)[0]
    assert prompt.text.endswith(f"User: {prompt.question}. Assistant:")
    assert tokenizer.decode(prompt.token_ids) == prompt.text
    assert prompt.grader == "reasoning_gym:chain_sum"
    assert prompt.grader_data["entry"]["answer"] == prompt.answer
    json.dumps(prompt.grader_data)


def test_splits_are_disjoint_by_question(tokenizer):
    source = open_prompts(GYM, tokenizer, seed=1)
    sides = [source.train, source.heldout, source.corpus]
    questions = [p.question for side in sides for p in side]
    assert len(set(questions)) == len(questions)
    assert len(source.heldout) == 20
    drawn = {prompt.question for prompt in source.take(3 * len(source.train))}
    assert drawn == {p.question for p in source.train}


def test_held_out_problems_depend_neither_on_the_seed_nor_on_how_many_were_drawn(tokenizer):
    more = dataclasses.replace(GYM, num_problems=800)
    first = open_prompts(GYM, tokenizer, seed=1)
    other = open_prompts(more, tokenizer, seed=2)
    assert first.heldout == other.heldout
    assert {p.question for p in first.train} < {p.question for p in other.train}


def test_every_epoch_has_each_problem_once_in_an_order_of_its_own(tokenizer):
    source = open_prompts(GYM, tokenizer, seed=1)
    size = len(source.train)
    epochs = [[prompt.id for prompt in source.take(size)] for _ in range(2)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == sorted(p.id for p in source.train)
    assert epochs[0] != epochs[1]
    assert source.take(1)[0].draw == 2 * size
    assert [p.id for p in open_prompts(GYM, tokenizer, seed=2).take(size)] != epochs[0]


def test_without_shuffling_problems_come_in_their_own_order(tokenizer):
    source = open_prompts(dataclasses.replace(GYM, shuffle=False), tokenizer, seed=1)
    assert [p.id for p in source.take(3)] == [p.id for p in source.train[:3]]


def test_resuming_goes_on_where_the_run_stopped(tokenizer):
    through = open_prompts(GYM, tokenizer, seed=1)
    # Far enough to stop inside the second epoch.
    through.take(len(through.train) + 5)
    num_draws = through.num_draws
    resumed = open_prompts(GYM, tokenizer, seed=1)
    resumed.seek(num_draws)
    assert resumed.take(5) == through.take(5)
    assert num_draws == len(through.train) + 5


def test_held_out_prompts_are_numbered_from_0(tokenizer):
    source = open_prompts(GYM, tokenizer, seed=1)
    assert [prompt.draw for prompt in source.heldout_prompts()] == list(range(20))
    assert [p.id for p in source.heldout_prompts(3)] == [p.id for p in source.heldout[:3]]
    assert source.num_draws == 0
    with pytest.raises(DataError, match="asks for 21 held-out problems.*heldout_problems = 20"):
        source.heldout_prompts(21)


def test_too_few_to_hold_out_says_how_many_there_are(tokenizer):
    with pytest.raises(
        DataError, match="heldout_problems = 300, and only 3. distinct.*num_problems"
    ):
        open_prompts(dataclasses.replace(GYM, heldout_problems=300), tokenizer, seed=1)


def test_long_prompts_are_dropped_and_counted(tokenizer, tmp_path):
    # One digit is one token.
    path = write_questions(tmp_path / "a.jsonl", ["1" * n for n in range(1, 101)])
    source = open_prompts(jsonl_config(path, max_prompt_tokens=60), tokenizer, seed=1)
    assert source.dropped == {"are longer than data.max_prompt_tokens = 60": 40}
    assert max(len(prompt.token_ids) for prompt in source.take(100)) <= 60
    with pytest.raises(
        DataError, match="longer than data.max_prompt_tokens = 1; the shortest of 99"
    ):
        path = write_questions(tmp_path / "b.jsonl", ["1" * n for n in range(2, 101)])
        open_prompts(jsonl_config(path, max_prompt_tokens=1), tokenizer, seed=1)


def test_a_held_out_file_wins_over_the_training_file(tokenizer, tmp_path):
    train = write_questions(tmp_path / "train.jsonl", ["1", "2", "3", "3", "4"])
    heldout = write_questions(tmp_path / "heldout.jsonl", ["3", "9", "4"])
    config = jsonl_config(train, heldout_path=str(heldout), heldout_problems=2)
    source = open_prompts(config, tokenizer, seed=1)
    assert [p.question for p in source.heldout] == ["3", "9"]
    # 4 is in the held-out file, though beyond the two that are used.
    assert [p.question for p in source.train] == ["1", "2"]
    assert source.dropped == {
        f"ask what an earlier line of {train} asks": 1,
        f"ask what {heldout} holds out": 2,
    }


def test_bad_lines_stop_or_are_set_aside_and_counted(tokenizer, tmp_path):
    path = write_questions(tmp_path / "a.jsonl", [str(n) for n in range(40)])
    path.write_text(path.read_text() + '\n{"question": "x"}\n{"question": \n')
    with pytest.raises(DataError, match=r"a\.jsonl:41: key 'answer' is missing. The line starts"):
        open_prompts(jsonl_config(path), tokenizer, seed=1)
    lenient = jsonl_config(path, bad_lines=BadLines.set_aside)
    check_source(lenient)
    source = open_prompts(lenient, tokenizer, seed=1)
    ((reason, count),) = source.dropped.items()
    assert count == 2 and "a.jsonl:41: key 'answer' is missing" in reason
    path.write_text('{"question": "x"}\n')
    with pytest.raises(DataError, match=r"all of its lines are bad; the first: .*a\.jsonl:1: key"):
        open_prompts(lenient, tokenizer, seed=1)
    with pytest.raises(DataError, match=r"all of its lines are bad"):
        check_source(lenient)


def test_good_lines_may_come_behind_the_first_that_are_looked_at(tokenizer, tmp_path):
    path = write_questions(tmp_path / "a.jsonl", [str(n) for n in range(40)])
    path.write_text('{"question": "x"}\n' * 1000 + path.read_text())
    lenient = jsonl_config(path, bad_lines=BadLines.set_aside)
    check_source(lenient)
    assert len(open_prompts(lenient, tokenizer, seed=1).train) > 0
    with pytest.raises(DataError, match=r"a\.jsonl:1: key 'answer' is missing"):
        check_source(jsonl_config(path))


def test_nothing_left_to_train_on_is_an_error(tokenizer, tmp_path):
    path = write_questions(tmp_path / "same.jsonl", ["1", "2"])
    config = jsonl_config(path, heldout_path=str(path), heldout_problems=2)
    with pytest.raises(DataError, match="no problem is left to train on"):
        open_prompts(config, tokenizer, seed=1)


def test_an_unknown_template_stops_before_the_first_draw(tokenizer):
    with pytest.raises(ConfigError, match="r1_zero, plain"):
        open_prompts(dataclasses.replace(GYM, template="r2"), tokenizer, seed=1)


@pytest.fixture
def three_sets(tmp_path):
    lines = [
        json.dumps({"question": f"{n}", "answer": "0", "dataset": dataset})
        for n, dataset in enumerate(["sums", "help", "harm"] * 20)
    ]
    path = tmp_path / "prompts.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    (tmp_path / "heldout.jsonl").write_text(lines[0], encoding="utf-8")
    return jsonl_config(path, heldout_path=str(tmp_path / "heldout.jsonl"), heldout_problems=1)


def test_data_sets_that_are_held_back_come_at_their_step(three_sets, tokenizer):
    source = open_prompts(three_sets, tokenizer, seed=1)
    source.hold_back({"help", "harm"}, until_step=8)
    early = source.take(30, step=6) + source.take(30, step=7)
    assert {prompt.dataset for prompt in early} == {"sums"}
    ahead = source.ahead(59, step=8)
    late = source.take(59, step=8)
    assert ahead == late
    assert {prompt.dataset for prompt in late} == {"sums", "help", "harm"}
    assert [prompt.draw for prompt in [*early, *late]] == list(range(119))
    again = open_prompts(three_sets, tokenizer, seed=1)
    again.hold_back({"help", "harm"}, until_step=8)
    again.seek(60)
    assert again.take(59, step=8) == late
    with pytest.raises(DataError, match="0 of 59 prompts have one of the data sets none"):
        source.hold_back({"none"}, until_step=8)


def test_data_sets_that_are_left_out_are_never_drawn(three_sets, tokenizer):
    without = dataclasses.replace(three_sets, leave_out=["help", "harm"], heldout_path=None)
    drawn = open_prompts(without, tokenizer, seed=1).take(100)
    assert {prompt.dataset for prompt in drawn} == {"sums"}
    nothing = dataclasses.replace(without, leave_out=["help", "harm", "sums"])
    with pytest.raises(DataError, match="all 60 prompts are of data sets that data.leave_out"):
        open_prompts(nothing, tokenizer, seed=1)
