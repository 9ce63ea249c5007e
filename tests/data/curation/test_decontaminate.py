"""Ten words in a row are too many, nine are not."""

from __future__ import annotations

import json

import pytest

from megatron_r1.config.curation import DecontaminationConfig
from megatron_r1.data.curation.decontaminate import Contamination
from megatron_r1.errors import DataError
from tests.data.curation.builders import example

WORDS = "one two three four five six seven eight nine ten eleven twelve".split()


@pytest.fixture
def benchmark(tmp_path) -> str:
    path = tmp_path / "aime.jsonl"
    records = [
        {"Problem": "What is 2 + 2?", "Answer": 4},
        {"Problem": " ".join(WORDS), "Solution": {"steps": ["alpha beta " * 6]}},
    ]
    path.write_text("\n".join(json.dumps(record) for record in records))
    return str(path)


def reason(benchmark: str, question: str, response: str | None = None, **settings) -> str:
    step = Contamination(DecontaminationConfig(files=[benchmark], **settings))
    keys = {} if response is None else {"response": response}
    return step.check(example(question, **keys))[1]


def test_any_ten_words_in_a_row(benchmark):
    shared = " ".join(WORDS[2:12])
    assert reason(benchmark, f"Then, {shared}!") == f"shares {shared!r} with {benchmark}:2"
    assert reason(benchmark, f"Then, {' '.join(WORDS[2:11])} and more words follow here") == ""


def test_typesetting_hides_nothing(benchmark):
    assert reason(benchmark, "x " + ", ".join(WORDS).upper())


def test_responses_and_solutions_are_looked_at(benchmark):
    assert reason(benchmark, "A question", "so alpha beta " * 6) == ""
    found = reason(benchmark, "A question", "so " + "alpha beta " * 6)
    assert found.endswith(f"{benchmark}:2")


def test_a_short_question_matches_as_a_whole(benchmark):
    assert reason(benchmark, "what is 2 - 2") == f"shares 'what is 2 2' with {benchmark}:1"
    assert reason(benchmark, "What is 2 + 2, and why?") == ""
    assert reason(benchmark, "Another question", "What is 2 + 2?") == ""


def test_signs_are_words_where_they_are_the_problem(benchmark):
    assert reason(benchmark, "what is 2 - 2", signs=True) == ""
    assert reason(benchmark, "What is 2 + 2?", signs=True).endswith(f"{benchmark}:1")


def test_words_of_a_template_may_be_let_pass(tmp_path):
    path = tmp_path / "sums.jsonl"
    template = "State the final answer to the following problem in one number: "
    path.write_text("\n".join(json.dumps({"q": f"{template}{i} plus {i}"}) for i in range(5)))
    asked = example(f"{template}77 plus 77")
    everything = Contamination(DecontaminationConfig(files=[str(path)]))
    assert everything.check(asked)[1].startswith("shares 'state the final")
    told = Contamination(DecontaminationConfig(files=[str(path)], max_items=2))
    assert told.check(asked)[1] == ""
    # An item's own number makes its n-grams its own.
    assert told.check(example(f"{template}3 plus 3"))[1].endswith("sums.jsonl:4")


def test_an_evaluation_file_without_text_is_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": "some text"}\n{"answer": 4}\n')
    with pytest.raises(DataError, match=r"a\.jsonl:2: holds no text"):
        Contamination(DecontaminationConfig(files=[str(path)]))
