"""From outcomes to JSON, table and picture, by hand."""

from __future__ import annotations

import itertools

import pytest

from megatron_r1.config.evaluation import SuiteConfig, SuiteFormat
from megatron_r1.config.judge import JudgeConfig
from megatron_r1.data.problems import Problem
from megatron_r1.errors import EngineError
from megatron_r1.evaluation.benchmarks.general import PAIRWISE, REFERENCE
from megatron_r1.evaluation.judging import judge_responses
from megatron_r1.evaluation.plot import draw_results
from megatron_r1.evaluation.results import judged_result, results_table, ruled_result
from megatron_r1.evaluation.runner import Outcome
from megatron_r1.rewards.judge import Judge, Judgement, Kind
from tests.rewards.judge_server import Reply, judge_server


def outcome(number: int, is_right: str, *, consensus: float | None = None, **more) -> Outcome:
    """`is_right` as ``++-``; "" where a judge reads."""
    return Outcome(
        prompt_id=f"p{number}",
        draw=number,
        is_right=tuple(sign == "+" for sign in is_right),
        format=(1.0,) * (len(is_right) or 2),
        tokens=(4,) * (len(is_right) or 2),
        is_truncated=(False,) * (len(is_right) or 2),
        consensus=consensus,
        **more,
    )


OUTCOMES = [
    outcome(0, "++--", consensus=0.5),
    outcome(1, "+---", consensus=0.0, num_unscored=2),
    outcome(2, "++++", consensus=1.0, compared_as_text=True),
]
SUITE = SuiteConfig(format=SuiteFormat.aime, samples=4, ks=[2], consensus=True)


def test_measures_of_three_problems():
    result = ruled_result(OUTCOMES, SUITE, confidence=0.95, skipped={"interactive": 3})
    assert list(result.measures) == ["pass@1", "pass@2", "pass@4", "cons@4"]
    # 2/4, 1/4, 4/4; pass@2: 1 - 1/6, 1 - 3/6, 1.
    assert result.measures["pass@1"].value == pytest.approx(7 / 12)
    assert result.measures["pass@2"].value == pytest.approx((5 / 6 + 1 / 2 + 1) / 3)
    # Standard deviation of 0.5, 0.25, 1: 0.381881; 1.959964 * 0.381881 / sqrt(3) = 0.432131.
    assert result.measures["pass@1"].low == pytest.approx(7 / 12 - 0.432131, abs=1e-5)
    # Three of three by Wilson: 3 / (3 + 3.841459).
    assert result.measures["pass@4"].low == pytest.approx(0.438503, abs=1e-5)
    assert result.measures["cons@4"].value == 0.5
    assert result.by_problem[1] == {"id": "p1", "right": 1, "consensus": 0.0}
    assert result.not_counted == {
        "interactive": 3,
        "samples without a verdict of their rule, counted as wrong": 2,
        "problems whose votes were compared as text alone": 1,
    }


def test_table_and_picture(tmp_path):
    result = ruled_result(OUTCOMES, SUITE, confidence=0.95, skipped={"interactive": 3}).to_json()
    table = results_table({"aime": result, "again": result}).splitlines()
    assert table[2] == "| aime  | pass@1  | 0.583 | 0.151 to 1.000 |        3 |       4 |"
    assert table[3].startswith("|       | pass@2 ")
    assert "aime: 3 interactive" in table
    path = tmp_path / "results.png"
    assert draw_results({"aime": result}, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert not draw_results({}, tmp_path / "none.png")


class ScriptedJudge:
    """Prefers the longer answer, has no opinion of ``?``, and knows that 4 is right."""

    def map_compare(self, cases, given_up=None):
        return [self._compare(first, second) for _, first, second, _ in cases]

    def map_correct(self, cases, given_up=None):
        return [
            Judgement(Kind.verdict, "correct" if answer == reference else "incorrect")
            for _, reference, answer, _ in cases
        ]

    def _compare(self, first, second):
        if "?" in (first, second):
            return Judgement(Kind.refusal)
        order = (len(first) > len(second)) - (len(first) < len(second))
        return Judgement(Kind.verdict, ["B>>A", "A=B", "A>B"][order + 1])


def test_a_judge_compares_both_ways_and_sees_the_summary_alone():
    problems = [Problem("a", "Q", "1234", PAIRWISE), Problem("b", "2 + 2", "4", REFERENCE)]
    texts = [["<think>a long thought</think>123", "12345", "abcd", "?"], ["<think>5</think>4", "5"]]
    verdicts = judge_responses(problems, texts, ScriptedJudge(), url="scripted")
    assert verdicts == [[0.0, 1.0, 0.5, None], [1.0, 0.0]]


def test_a_judge_that_is_down_ends_it_and_is_asked_again_for_the_rest(tmp_path):
    """Of 40 answers 20 are judged, then the judge fails; 5% may be lost."""
    problems = [Problem(str(n), f"Q{n}", "4", REFERENCE) for n in range(40)]
    texts = [[f"<think>x</think>four {n}"] for n in range(40)]
    correct = Reply('{"analysis": "same", "correctness": "correct"}')

    def fails_after(number: int):
        numbers = itertools.count(1)  # requests come side by side: one step counts and tells
        return lambda body: correct if next(numbers) <= number else Reply(status=503)

    def judged_by(answer):
        with judge_server(answer) as endpoint:
            config = JudgeConfig(
                base_url=endpoint.url, max_retries=0, cache_path=str(tmp_path / "judge.jsonl")
            )
            try:
                return judge_responses(problems, texts, Judge(config), url=endpoint.url), endpoint
            except EngineError as error:
                assert f"the judge at {endpoint.url} did not answer" in str(error)
                assert "evaluation.judge.base_url" in str(error)
                return None, endpoint

    assert judged_by(fails_after(20))[0] is None
    verdicts, endpoint = judged_by(fails_after(19))  # one of the 20 that are left is lost
    assert len(endpoint.requests) == 20
    assert sorted(verdicts, key=str) == [[1.0]] * 39 + [[None]]


def test_a_judge_without_verdicts_ends_it():
    """What says nothing is incorrect without asking, and is no verdict of the judge's."""
    problems = [Problem(str(n), f"Q{n}", "4", REFERENCE) for n in range(4)]
    texts = [["four", ""] for _ in problems]
    replies = [Reply("bla bla")] * 3 + [Reply('{"correctness": "correct"}')] * 3
    with judge_server(lambda body: replies.pop(0)) as endpoint:
        judge = Judge(JudgeConfig(base_url=endpoint.url, max_parallel=1))
        with pytest.raises(EngineError, match=r"3 of 4 requests.*unparsable 3.*: 'bla bla'"):
            judge_responses(problems, texts, judge, url=endpoint.url)
        # Half of them: the rest is left out, and counted.
        replies[:] = [Reply("bla bla")] * 2 + [Reply('{"correctness": "correct"}')] * 2
        again = Judge(JudgeConfig(base_url=endpoint.url, max_parallel=1))
        found = judge_responses(problems, texts, again, url=endpoint.url)
    assert found == [[None, 0.0]] * 2 + [[1.0, 0.0]] * 2


def test_an_unfinished_thought_is_not_shown_to_the_judge():
    problems = [Problem("b", "2 + 2", "4", REFERENCE)]
    with judge_server(lambda body: Reply('{"correctness": "correct"}')) as endpoint:
        judge = Judge(JudgeConfig(base_url=endpoint.url))
        texts = [["<think>it is 4, or is it", "<think>5?</think> 4 "]]
        assert judge_responses(problems, texts, judge, url=endpoint.url) == [[0.0, 1.0]]
    (asked,) = endpoint.requests
    assert "or is it" not in str(asked) and "<answer>\\n4\\n</answer>" in str(asked)


def test_what_was_not_judged_is_left_out_and_counted():
    outcomes = [outcome(number, "") for number in range(3)]
    verdicts = [[1.0, None], [0.0, 0.5], [None, None]]
    result = judged_result(outcomes, verdicts, confidence=0.95, skipped={})
    assert result.measures["judged"].value == pytest.approx((1.0 + 0.25) / 2)
    assert result.not_counted == {
        "samples without a verdict of the judge, left out": 3,
        "problems without any, left out": 1,
    }
    assert result.problems == 2  # those that the measure is of
    nothing = judged_result(outcomes[:1], [[None, None]], confidence=0.95, skipped={})
    assert nothing.measures == {}
