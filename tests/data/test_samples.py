"""Samples in a file: what is wrong with a line's lineage is wrong with the line."""

from __future__ import annotations

import json

import pytest

from megatron_r1.data.samples import read_samples
from megatron_r1.errors import DataError

GOOD = {"prompt": "1 + 1 =", "response": "2", "lineage": {"model": "big", "seed": None}}


@pytest.mark.parametrize(
    ("lineage", "message"),
    [
        ("big", "'lineage' must be an object, got str"),
        (None, "'lineage' must be an object, got NoneType"),
        ({"modell": "big"}, "'lineage' has an unknown key 'modell'"),
    ],
)
def test_a_lineage_that_cannot_be_read_is_a_bad_line(tmp_path, lineage, message):
    path = tmp_path / "samples.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "lineage": lineage}) + "\n")
    with pytest.raises(DataError) as caught:
        read_samples(path)
    assert str(caught.value).startswith(f"{path}:2: {message}")
    bad_lines = []
    (sample,) = read_samples(path, bad_lines=bad_lines)
    assert sample.lineage == {"model": "big"} and len(bad_lines) == 1
