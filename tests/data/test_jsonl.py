"""Files of one's own, and every way in which a line can be wrong."""

from __future__ import annotations

import json

import pytest

from megatron_r1.data.jsonl import read_jsonl
from megatron_r1.errors import DataError

GOOD = b'{"question": "1 + 1 =", "answer": "2"}'


def test_defaults_and_what_a_line_may_set(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_bytes(
        b"\xef\xbb\xbf" + GOOD + b"\r\n\n"
        b'{"question": "2", "answer": "3", "id": "mine", "grader": "exact", "level": 4}\n'
        b'{"question": "3", "answer": "4", "grader": "reasoning_gym:chain_sum"}'
    )
    first, second, third = read_jsonl(path)
    assert (first.id, first.question, first.answer, first.grader) == (
        "sums/1",
        "1 + 1 =",
        "2",
        "math",
    )
    assert (second.id, second.grader, second.grader_data) == ("mine", "exact", {})
    assert third.id == "sums/4"
    assert third.grader_data["entry"] == {"question": "3", "answer": "4", "metadata": {}}


def test_code_choices_data_sets_and_languages(tmp_path):
    path = tmp_path / "mixed.jsonl"
    tests = {"language": "cpp", "stdio": [{"input": "1", "output": "2"}]}
    records = [
        {"question": "1", "grader": "code", "tests": tests, "dataset": "competition"},
        {"question": "2", "answer": "B", "grader": "choice", "choices": ["x", "y"]},
        {"question": "3", "answer": "4", "language": "zh"},
    ]
    path.write_text("\n".join(json.dumps(record) for record in records))
    code, choice, chinese = read_jsonl(path)
    assert (code.answer, code.grader_data, code.dataset) == ("", {"tests": tests}, "competition")
    assert choice.grader_data == {"choices": ["x", "y"]}
    assert (chinese.language, chinese.dataset, code.language) == ("zh", "", None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"question": "1", "grader": "code"}', "'tests' must be an object"),
        (b'{"question": "1", "grader": "code", "tests": {"stdio": []}}', "neither stdio nor unit"),
        (
            b'{"question": "1", "grader": "code", "tests": {"unit": "x", "lang": "c"}}',
            "unknown keys: lang",
        ),
        (
            b'{"question": "1", "grader": "code", "tests": {"language": "c", "unit": "x"}}',
            "choose python, cpp",
        ),
        (
            b'{"question": "1", "grader": "code", "tests": {"unit": "x", "limits": {"cpu_s": 0}}}',
            "to positive numbers",
        ),
        (b'{"question": "1", "answer": "B", "grader": "choice", "choices": "AB"}', "'choices'"),
        (b'{"question": "1", "answer": "2", "language": "english"}', "choose one of ar, bg"),
        (b'{"question": "1"', "not JSON: Expecting ',' delimiter at column 17"),
        (b"[" * 200_000, "JSON nested too deeply"),
        (b"[1, 2]", "expected an object, got list"),
        (b'{"question": "1"}', "key 'answer' is missing"),
        (b'{"question": 1, "answer": "2"}', "'question' must be a string, got int 1"),
        (b'{"question": "1", "answer": 2}', "'answer' must be a string, got int 2"),
        (b'{"question": " ", "answer": "2"}', "'question' is empty"),
        (b'{"question": "\xff", "answer": "2"}', "not UTF-8 at byte 15"),
        (b'{"question": "\\ud800", "answer": "2"}', "half of a surrogate pair"),
        (b'{"question": "1", "answer": "2", "grader": "guess"}', "grader 'guess' is unknown"),
        (b'{"question": "1", "answer": "2", "grader": "reasoning_gym:chain_sun"}', "chain_sum"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_its_start(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    assert message in str(caught.value)
    assert "The line starts " in str(caught.value)


def test_a_file_that_is_missing_empty_or_a_directory(tmp_path):
    with pytest.raises(DataError, match="none.jsonl: No such file or directory. Set data.path"):
        read_jsonl(tmp_path / "none.jsonl")
    with pytest.raises(DataError, match="Is a directory"):
        read_jsonl(tmp_path)
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    with pytest.raises(DataError, match="empty.jsonl holds no problem"):
        read_jsonl(tmp_path / "empty.jsonl")
