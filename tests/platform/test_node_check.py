"""What is wrong with a machine is said with its name."""

from __future__ import annotations

import pytest
import torch

from megatron_r1.errors import NodeError
from megatron_r1.platform.node_check import (
    check_nodes,
    find_problems,
    is_matrix_product_right,
    time_matrix_product,
)


def test_a_sound_machine_has_no_problems(one_rank, tmp_path):
    assert is_matrix_product_right(torch.device("cpu"))
    assert 0 < time_matrix_product(torch.device("cpu")) < 1
    assert find_problems(one_rank.host, tmp_path / "new/run", min_free_disk_gib=0.001) == []


def test_a_full_disk_names_the_host(one_rank, tmp_path, monkeypatch):
    monkeypatch.setenv("SLURMD_NODENAME", "gpu017")
    assert check_nodes(one_rank.host, tmp_path, min_free_disk_gib=0.001) == ["gpu017"]
    with pytest.raises(NodeError, match="rank 0 on gpu017: .* less than .*--exclude=gpu017"):
        check_nodes(one_rank.host, tmp_path, min_free_disk_gib=1e9)
