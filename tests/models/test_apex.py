"""The model with Apex's norms is the model without them.

Apex needs a GPU, so what is tested on a CPU is our side of it: a stand-in has the constructor and
the parameter of Apex's fused RMS norm and computes with PyTorch's. What Apex itself computes is a
GPU's to show (docs/gpu.md).
"""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch

from megatron_r1.config.load import load_config
from megatron_r1.models.precision import Installed
from tests.models.builders import (
    check_checkpoints_are_exchanged,
    checkpoint_keys,
    logits_of,
    random_tokens,
)

pytestmark = pytest.mark.megatron


class FusedRMSNorm(torch.nn.Module):
    """As in apex.normalization."""

    def __init__(self, normalized_shape: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.normalized_shape, self.eps = (normalized_shape,), eps
        self.weight = torch.nn.Parameter(torch.ones(normalized_shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)


@pytest.fixture
def apex(monkeypatch) -> None:
    """A machine with a GPU and Apex alone, as far as the choice of parts can tell."""
    package, normalization = ModuleType("apex"), ModuleType("apex.normalization")
    package.normalization, normalization.FusedRMSNorm = normalization, FusedRMSNorm
    monkeypatch.setitem(sys.modules, "apex", package)
    monkeypatch.setitem(sys.modules, "apex.normalization", normalization)
    alone = Installed(transformer_engine=False, apex=True)
    monkeypatch.setattr(Installed, "on", staticmethod(lambda device: alone))


@pytest.mark.parametrize("model", ["tiny_dense", "tiny_v3", "tiny_qwen3_moe"])
def test_the_model_and_its_checkpoints_are_the_same_with_apex(model, one_rank, apex, tmp_path):
    prefix = [f"model={model}", "rollout.max_response_tokens=64"]
    plain = one_rank.policy(load_config([*prefix, "precision.parts=plain"]))
    fused = one_rank.policy(load_config(prefix), seed=8)
    assert (plain.parts.name, fused.parts.name) == ("plain", "apex")
    assert any(type(module).__name__ == "ApexNorm" for module in fused.chunks[0].modules())

    def described(policy) -> dict[str, tuple]:
        return {n: (w.shape, w.dtype, vars(w).keys()) for n, w in policy.named_parameters()}

    assert described(fused) == described(plain)
    assert checkpoint_keys(fused) == checkpoint_keys(plain)
    check_checkpoints_are_exchanged(plain, fused, tmp_path)
    tokens_T = random_tokens(20)
    torch.testing.assert_close(*(logits_of(policy, tokens_T, [20]) for policy in (plain, fused)))
