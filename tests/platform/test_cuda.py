"""On a GPU: nothing is replaced, and a model computes what it computes on a CPU."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import pytest
import torch

from megatron_r1.config.load import load_config
from megatron_r1.models.stream import TokenStream

pytestmark = pytest.mark.megatron

GOLDEN = Path(__file__).parents[1] / "golden" / "logprobs.json"
LENGTHS = (11, 3, 20)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_nothing_is_replaced_where_cuda_exists(one_rank):
    assert one_rank.host.backend == "nccl"
    schedules = importlib.import_module("megatron.core.pipeline_parallel.schedules")
    assert schedules.torch is torch
    assert torch.cuda.Stream.__module__ == "torch.cuda.streams"
    assert torch.zeros(1).type() == "torch.FloatTensor"  # the CPU's replacement says cuda


@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense"])
@pytest.mark.parametrize(
    "device",
    [
        pytest.param("cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU")),
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.gpu,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
            ],
        ),
    ],
)
def test_a_forward_pass_is_the_same_on_every_device(one_rank, name, device):
    """Log-probabilities of fixed tokens under weights from a seed, as a CPU computed them."""
    assert one_rank.host.device.type == device
    expected = torch.tensor(json.loads(GOLDEN.read_text())[name])
    # Sums of 128 float32 numbers in another order, through four layers.
    assert (logprobs(one_rank, name) - expected).abs().max() < 1e-4


def logprobs(one_rank, name: str) -> torch.Tensor:
    """Log-probability of each token under the logits of its own column; float32, on the CPU."""
    plain = [f"model={name}", "rollout.max_response_tokens=64", "precision.parts=plain"]
    policy = one_rank.policy(load_config(plain))
    device = policy.host.device
    tokens_T = torch.arange(sum(LENGTHS), device=device) * 37 % policy.config.vocab_size
    stream = TokenStream(
        positions_T=torch.cat([torch.arange(n, device=device) for n in LENGTHS]),
        seq_lengths=LENGTHS,
    )
    with policy.inference():
        logits_TV = policy.forward(tokens_T, stream)
    return logits_TV.log_softmax(-1).gather(1, tokens_T[:, None]).squeeze(1).cpu()


if __name__ == "__main__":
    from tests.conftest import OneRank

    job = OneRank()
    golden = {name: logprobs(job, name).tolist() for name in ("tiny_v3", "tiny_dense")}
    GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
