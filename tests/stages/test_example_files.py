"""Files that stages learn from are read as `data.bad_lines` says."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megatron_r1.config.load import load_config
from megatron_r1.errors import DataError
from megatron_r1.stages.tiny_base import corpus

pytestmark = pytest.mark.megatron


def test_a_bad_document_stops_the_base_or_is_set_aside(tmp_path):
    path = tmp_path / "documents.jsonl"
    path.write_text('{"prompt": "1 + 1 =", "response": "2"}\n{"prompt": "2 + 2 ="}\n')
    settings = ["stage=tiny_base", f"stage.documents={path}", "data.template=plain"]
    said: list[str] = []

    def documents(*overrides: str) -> list[tuple[str, str]]:
        config = load_config([*settings, *overrides])
        return corpus(SimpleNamespace(config=config, say=said.append), config.stage)

    with pytest.raises(DataError, match="documents.jsonl:2: key 'response' is missing"):
        documents()
    ((_, response),) = documents("data.bad_lines=set_aside")
    assert response == "2"
    assert said[0].startswith(f"1 bad lines of {path} were set aside; the first: {path}:2")
