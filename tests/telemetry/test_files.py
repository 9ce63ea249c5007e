from __future__ import annotations

import pytest

from megatron_r1.telemetry.files import replace_file


def test_the_file_changes_when_the_block_ends(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with replace_file(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


def test_a_block_that_raises_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "x.txt"
    path.write_text("old")
    with pytest.raises(KeyError), replace_file(path) as draft:
        draft.write_text("half of the n")
        raise KeyError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
