"""Labelled responses in a file, and what is said of a line that is none."""

from __future__ import annotations

import json

import pytest

from megatron_r1.data.safety_labels import LabelledResponse, read_labelled
from megatron_r1.errors import DataError

GOOD = {"prompt": "How?", "response": "<think>so</think>So.", "safe": True}


def test_responses_are_read_in_their_order_and_named(tmp_path):
    file = tmp_path / "labelled.jsonl"
    records = [{**GOOD, "id": "so", "source": "nobody"}, {**GOOD, "safe": False}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    text = GOOD["response"]
    assert read_labelled(file) == [
        LabelledResponse("How?", text, safe=True, id="so"),
        LabelledResponse("How?", text, safe=False, id="labelled/2"),
    ]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"safe": "yes"}, "'safe' must be true or false, got 'yes'"),
        ({"safe": 1}, "'safe' must be true or false, got 1"),
        ({"safe": None}, "'safe' must be true or false, got None"),
        ({"response": ""}, "'response' is empty"),
        ({"prompt": 3}, "'prompt' must be a string, got int 3"),
    ],
)
def test_a_bad_line_is_named(change, message, tmp_path):
    file = tmp_path / "labelled.jsonl"
    file.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, **change}) + "\n")
    with pytest.raises(DataError) as raised:
        read_labelled(file)
    assert str(raised.value).startswith(f"{file}:2: {message}. The line starts")
