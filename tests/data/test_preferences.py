"""Pairs in files, and every way in which a line can be wrong."""

from __future__ import annotations

import json

import pytest

from megatron_r1.data.preferences import PreferencePair, read_preferences, write_preferences
from megatron_r1.data.scored_rows import summary_of
from megatron_r1.errors import DataError

GOOD = b'{"prompt": "1 + 1 =", "chosen": " 2", "rejected": " 3"}'


def test_defaults_and_what_a_line_may_set(tmp_path):
    path = tmp_path / "sums.jsonl"
    path.write_bytes(
        GOOD + b'\n\n{"prompt": "2", "chosen": "a", "rejected": "b", "margin": 2, "id": "mine", '
        b'"source": "x"}\n'
    )
    assert read_preferences(path) == [
        PreferencePair("1 + 1 =", " 2", " 3", margin=None, id="sums/1"),
        PreferencePair("2", "a", "b", margin=2.0, id="mine"),
    ]


def test_what_is_written_is_read_back(tmp_path):
    pairs = [
        PreferencePair("q", "besser \u2713", "a\nb", margin=1.25, id="one"),
        PreferencePair("q", "x", "y", id="two"),
    ]
    write_preferences(tmp_path / "pairs.jsonl", pairs)
    assert read_preferences(tmp_path / "pairs.jsonl") == pairs


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"prompt": "1", "chosen": "2"}', "key 'rejected' is missing"),
        (b'{"prompt": "1", "chosen": "", "rejected": "2"}', "'chosen' is empty"),
        (b'{"prompt": 1, "chosen": "2", "rejected": "3"}', "'prompt' must be a string"),
        (b'{"prompt": "1", "chosen": "2", "rejected": "2"}', "prefers neither"),
        (GOOD[:-1] + b', "margin": -1}', "'margin' must be a number from 0"),
        (GOOD[:-1] + b', "margin": NaN}', "'margin' must be a number from 0"),
        (GOOD[:-1] + b', "margin": true}', "'margin' must be a number from 0"),
        (b"[" * 200_000, "not a pair: JSON nested too deeply"),
    ],
)
def test_a_bad_line_is_named_with_its_number_and_its_start(tmp_path, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n")
    with pytest.raises(DataError) as caught:
        read_preferences(path)
    assert str(caught.value).startswith(f"{path}:2: ")
    assert message in str(caught.value)


def test_a_pair_that_differs_where_nothing_is_read_is_named_with_its_line(tmp_path):
    """The helpful reward model reads summaries: two thoughts before one summary prefer neither."""
    thoughts = {"prompt": "1", "chosen": "<think>a</think>two", "rejected": "<think>b</think> two "}
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(GOOD + b"\n" + json.dumps(thoughts).encode() + b"\n")
    assert len(read_preferences(path)) == 2
    with pytest.raises(DataError, match="have the same summary, 'two'") as caught:
        read_preferences(path, part_read=summary_of)
    assert str(caught.value).startswith(f"{path}:2: ")


def test_a_file_that_is_missing_or_empty(tmp_path):
    with pytest.raises(DataError, match="pair file .*none.jsonl: No such file .* Name a JSONL"):
        read_preferences(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_bytes(b"\n \n")
    with pytest.raises(DataError, match="empty.jsonl holds no pair"):
        read_preferences(tmp_path / "empty.jsonl")
