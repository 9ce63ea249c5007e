"""Which samples are learned from."""

from __future__ import annotations

from collections import Counter

import pytest

from megatron_r1.data.rejection import (
    Trimmed,
    count_reasons,
    fault_of,
    select,
    split_heldout,
    trim_to_ratio,
)


def sample(draw: int, text: str, reasons: dict | None = None, **parts: float) -> dict:
    good = {"accuracy": 1.0, "format": 1.0, "readable": 1.0}
    return {"draw": draw, "response": text, "parts": {**good, **parts}, "reasons": reasons or {}}


def test_right_and_readable_ones_are_kept_and_the_others_counted_by_reason():
    samples = [
        sample(0, "wrong", accuracy=0.0),
        sample(0, "a"),
        sample(0, "a"),
        sample(0, "b"),
        sample(0, "c"),
        sample(1, "mixed", {"readable": "mixed languages: 0.30 of it is en"}, readable=0.0),
        sample(1, "loop", {"readable": "repetition: 9 of 10 8-grams"}, readable=0.0),
        sample(2, "d"),
    ]
    found = select(samples, keep_per_prompt=2)
    assert [s["response"] for s in found.kept] == ["a", "b", "d"]
    assert count_reasons(found.dropped) == {
        "accuracy": 1,
        "the same text again": 1,
        "enough of this prompt": 1,
        "readable: mixed languages": 1,
        "readable: repetition": 1,
    }
    assert [s["response"] for s in select(samples).kept] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("reason", ["timeout", "worker died, exit code -9"])
def test_what_was_not_graded_is_not_called_wrong(reason):
    rules = ("accuracy", "format", "readable")
    lost = sample(0, "x", dict.fromkeys(rules, reason), **dict.fromkeys(rules, 0.0))
    assert fault_of(lost) == f"not graded: {reason.partition(',')[0]}"
    slow = sample(0, "x", {**lost["reasons"], "format": "one thought, one answer"}, accuracy=0.0)
    assert fault_of(slow) == "accuracy"


def test_where_no_rule_serves_the_judge_decides():
    asked = {"draw": 0, "response": "x", "parts": {"readable": 1.0}, "reasons": {}}
    assert fault_of(asked) == "no verdict"
    asked["parts"]["judged"] = 1.0
    assert fault_of(asked) == ""
    asked["parts"]["judged"] = 0.0
    assert fault_of(asked) == "judged"


def test_half_a_surrogate_pair_is_no_text():
    assert fault_of(sample(0, "it is \ud83d")) == "half a surrogate pair"
    assert fault_of(sample(0, "it is \U0001f600")) == ""


def examples(name: str, count: int) -> list[dict]:
    return [{"question": f"{name} {n}", "response": str(n)} for n in range(count)]


def test_three_of_reasoning_for_each_other_one():
    reasoning, general = examples("sum", 60), examples("chat", 40)
    found = trim_to_ratio(reasoning, general, 3.0)
    others = found.general
    assert (len(found.reasoning), len(others)) == (60, 20)
    assert others == [example for example in general if example in others]  # in their order
    left_out = [example for example in general if example not in others]
    assert found.dropped == [(example, "too many general ones") for example in left_out]
    assert trim_to_ratio(reasoning, general, 3.0) == found
    found = trim_to_ratio(reasoning, general[:5], 3.0)
    assert (len(found.reasoning), len(found.general)) == (15, 5)
    assert count_reasons(found.dropped) == {"too many of reasoning": 45}
    assert trim_to_ratio(reasoning, general, 0) == Trimmed(reasoning, general, [])
    assert trim_to_ratio(reasoning, [], 3.0) == Trimmed(reasoning, [], [])


def test_all_samples_of_a_question_are_on_one_side():
    both = examples("sum", 200) + examples("sum", 200)
    train, heldout = split_heldout(both, 0.1)
    assert len(train) + len(heldout) == 400 and 10 < len(heldout) < 80
    counts = Counter(example["question"] for example in heldout)
    assert set(counts.values()) == {2}
    assert split_heldout(both, 0.0) == (both, [])
