"""Attention under context parallelism: Transformer Engine's, which passes keys and values round,
beside PyTorch's, for which they are gathered. On a CPU a stand-in takes the former's place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.distributed.attention_worker import KINDS, PASSES
from tests.distributed.worlds import Worlds

pytestmark = [
    pytest.mark.megatron,
    pytest.mark.xdist_group("ranks"),
    pytest.mark.timeout(900),
]


def test_keys_that_go_round_are_attended_as_gathered_ones(worlds: Worlds, tmp_path: Path):
    """And not passed round where each rank has a stream of its own."""
    failure = worlds.run("tests.distributed.attention_worker", 2, str(tmp_path))
    assert not failure, failure
    # bfloat16 rounds at 2^-9, of what is added up in two other orders.
    bound = 0.02 if torch.cuda.is_available() else 1e-5
    for rank in range(2):
        gaps = json.loads((tmp_path / f"{rank}.json").read_text())
        assert gaps.keys() == KINDS.keys()
        for kind, by_pass in gaps.items():
            assert by_pass.keys() == PASSES.keys()
            assert max(by_pass.values()) < bound, (rank, kind, by_pass)
