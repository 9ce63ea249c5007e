"""reasoning-gym behind one door: its tasks, their mistakes, and answers that it would execute."""

from __future__ import annotations

import json

import pytest

from megatron_r1.data.gym_tasks import (
    from_json,
    generate_problems,
    is_harmless,
    score_answer,
    to_json,
)
from megatron_r1.errors import ConfigError


def test_more_problems_start_with_the_same_ones():
    few = generate_problems("chain_sum", {}, 3)
    assert generate_problems("chain_sum", {}, 6)[:3] == few
    assert [p.id for p in few] == ["chain_sum/0", "chain_sum/1", "chain_sum/2"]
    assert few[0].grader == "reasoning_gym:chain_sum"


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        ("chain_sun", {}, "'chain_sun' is not a task.*Did you mean .*chain_sum"),
        (
            "chain_sum",
            {"min_term": 2},
            "min_term is not an option.*Did you mean min_terms.*max_digits",
        ),
        ("chain_sum", {"min_terms": 9}, "max_terms must be >= min_terms"),
        ("chain_sum", {"min_terms": "two"}, "data.task_options of chain_sum"),
        ("chain_sum", {"size": 5}, "set data.num_problems instead"),
    ],
)
def test_mistakes_name_the_setting_and_a_way_out(task, options, message):
    with pytest.raises(ConfigError, match=message):
        generate_problems(task, options, 1)


def test_json_keeps_tuples_and_numeric_keys():
    value = {"pair": (1, (2.5, None)), "colours": {1: "red", 2: ["x", ()]}, "plain": {"a": True}}
    assert from_json(json.loads(json.dumps(to_json(value)))) == value


@pytest.mark.parametrize("task", ["chain_sum", "countdown", "arc_agi", "n_queens", "word_ladder"])
def test_the_reference_answer_has_full_score_after_json(task):
    problem = generate_problems(task, {}, 1)[0]
    data = json.loads(json.dumps(problem.grader_data))
    assert score_answer(task, problem.answer, data)[0] == 1.0


def test_a_right_countdown_that_is_not_the_reference_counts():
    problem = generate_problems("countdown", {}, 1)[0]
    assert score_answer("countdown", f"({problem.answer})", problem.grader_data)[0] == 1.0
    score, _ = score_answer("countdown", "1 + 1", problem.grader_data)
    assert 0 < score < 1


def test_an_unreadable_answer_is_wrong_and_a_broken_grader_raises():
    problem = generate_problems("prime_factorization", {}, 1)[0]
    score = score_answer("prime_factorization", "no idea", problem.grader_data)
    assert score == (0.0, "unreadable: ValueError")
    # Here the reference answer cannot be read either.
    with pytest.raises(ValueError, match="invalid literal"):
        score_answer("prime_factorization", "2", {"entry": {"answer": "unknown"}})


@pytest.mark.parametrize(
    ("answer", "harmless"),
    [
        ("(3 + x) * sqrt(2) / 5", True),
        ("[[1, 2], [3, 4]]", True),
        ("_ Q _ _", True),
        ("exit()", False),
        ("().__class__", False),
        ("lambda: 0", False),
        ("ｅｘｉｔ()", False),  # full-width letters: the same name to Python
        (r"S('\137\137')", False),
        ("S('%c' % 95)", False),
    ],
)
def test_what_an_evaluator_may_see(answer, harmless):
    assert is_harmless(answer) == harmless


@pytest.mark.parametrize("task", ["countdown", "binary_matrix", "n_queens"])
def test_an_answer_is_never_executed(task, tmp_path):
    trace = tmp_path / "executed"
    problem = generate_problems(task, {}, 1)[0]
    attack = f"open({str(trace)!r}, 'w')"
    assert score_answer(task, attack, problem.grader_data)[0] == 0.0
    assert not trace.exists()
