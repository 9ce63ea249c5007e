"""Preference pairs: sides, means, the threshold, lengths, and going on after a kill."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

from megatron_r1.config.judge import JudgeConfig
from megatron_r1.data.preferences import PreferencePair, read_preferences
from megatron_r1.rewards.judge import Judge, Judgement, Kind
from megatron_r1.rewards.pairs import (
    Candidates,
    balance_lengths,
    build_pairs,
    mean_score,
)
from tests.rewards.judge_server import Reply, judge_server

ROOT = Path(__file__).parents[2]
BLOCKS = re.compile(r"<answer_of_assistant_(A|B)>\n(.*?)\n</answer", re.DOTALL)


def by_quality(body: dict) -> Reply:
    """A fair judge: answers say how good they are, e.g. ``good 2``."""
    answers = dict(BLOCKS.findall(body["messages"][0]["content"]))
    if "refuse" in answers.values():
        return Reply("I'm sorry, I can't help with that.")
    difference = int(answers["A"].split()[1]) - int(answers["B"].split()[1])
    verdicts = {2: "A>>B", 1: "A>B", 0: "A=B", -1: "B>A", -2: "B>>A"}
    return Reply(f"mine ... [[{verdicts[max(-2, min(2, difference))]}]]")


def always_a(body: dict) -> Reply:
    """A judge that looks at the position alone."""
    return Reply("[[A>>B]]")


def candidates(*cases: tuple[str, str]) -> list[Candidates]:
    return [Candidates(f"c{i}", f"question {i}", a, b) for i, (a, b) in enumerate(cases)]


def test_clear_pairs_are_kept_whichever_side_they_stood_on():
    cases = [("good 3", "good 1"), ("good 0", "good 2"), ("good 2", "good 1"), ("good 1", "refuse")]
    with judge_server(by_quality) as endpoint:
        judge = Judge(JudgeConfig(base_url=endpoint.url))
        result = build_pairs(candidates(*cases), judge, seed=1)
    # Differences 2, -2, 1 (not above 1), and none.
    assert [(pair.chosen, pair.rejected) for pair in result.pairs] == [
        ("good 3", "good 1"),
        ("good 2", "good 0"),
    ]
    assert result.dropped == {"unjudged": 1, "too close": 1, "unbalanced length": 0}
    assert judge.metrics["judge/refusal"] == 4
    assert len(endpoint.requests) == 16


def test_random_sides_undo_a_preference_for_a_side():
    cases = candidates(*[("good 1", "good 1")] * 200)
    with judge_server(always_a) as endpoint:
        judge = Judge(JudgeConfig(base_url=endpoint.url))
        result = build_pairs(cases, judge, seed=1)
    # Only 4 equal sides of 4 give |mean| = 2, 1 in 8; 3 of 4 give 1, which is not above 1.
    assert 10 <= len(result.pairs) <= 42


def test_the_same_run_again_asks_nothing_and_gives_the_same(tmp_path):
    cases = candidates(("good 3", "good 1"), ("good 0", "good 2"))
    with judge_server(by_quality) as endpoint:
        config = JudgeConfig(base_url=endpoint.url, cache_path=str(tmp_path / "judge.jsonl"))
        first = build_pairs(cases, Judge(config), seed=1)
        asked = len(endpoint.requests)
        assert build_pairs(cases, Judge(config), seed=1) == first
        assert len(endpoint.requests) == asked == 8


def test_the_command_writes_what_dpo_reads(tmp_path):
    cases = [("good 3", "good 1"), ("good 1", "good 1"), ("good 0", "good 2")]
    lines = [
        json.dumps({"id": f"c{i}", "prompt": f"question {i}", "first": a, "second": b})
        for i, (a, b) in enumerate(cases)
    ]
    source, target = tmp_path / "candidates.jsonl", tmp_path / "pairs.jsonl"
    source.write_text("\n".join(lines))
    command = [sys.executable, "tools/judge_pairs.py", str(source), str(target)]
    with judge_server(by_quality) as endpoint:
        done = subprocess.run(
            [*command, f"judge.base_url={endpoint.url}"], cwd=ROOT, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    assert f"2 pairs of 3 in {target}; 0 unjudged, 1 too close" in done.stdout
    assert read_preferences(target) == [
        PreferencePair("question 0", "good 3", "good 1", margin=2.0, id="c0"),
        PreferencePair("question 2", "good 2", "good 0", margin=2.0, id="c2"),
    ]
    source.write_text('{"id": "c0", "prompt": "q", "first": "a"}')
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert refused.returncode == 2 and "key 'second' is missing" in refused.stderr


def test_the_mean_of_four_from_the_first_responses_side():
    verdicts = [Judgement(Kind.verdict, name) for name in ("A>>B", "A>B", "B>A", "A=B")]
    # (2 + 1 - 1 + 0) / 4; swapped first and third: (-2 + 1 + 1 + 0) / 4
    assert mean_score(verdicts, [False] * 4) == 0.5
    assert mean_score(verdicts, [True, False, True, False]) == 0.0
    assert mean_score([*verdicts[:3], Judgement(Kind.timeout)], [False] * 4) is None


def test_lengths_are_balanced_over_the_data_set():
    def pair(chosen: int, rejected: int) -> PreferencePair:
        return PreferencePair("q", "c" * chosen, "r" * rejected, 2.0)

    even = [pair(100, 100), pair(90, 110), pair(110, 90)]
    assert balance_lengths(even, 1.05) == even
    # 100 + 300 over 100 + 100 is 2: without the longest excess it is 1.
    assert balance_lengths([pair(100, 100), pair(300, 100)], 1.05) == [pair(100, 100)]
    assert balance_lengths([pair(100, 300), pair(100, 100)], 1.05) == [pair(100, 100)]
    assert balance_lengths([pair(300, 100)], 1.05) == []
    balanced = balance_lengths([pair(100 + 10 * i, 100) for i in range(20)], 1.05)
    ratio = sum(len(p.chosen) for p in balanced) / sum(len(p.rejected) for p in balanced)
    assert 1.0 <= ratio <= 1.05
    assert len(balanced) >= 2
