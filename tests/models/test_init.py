"""Initial weights: their distributions, and a random stream for each matrix."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from megatron_r1.config.load import load_config

pytestmark = pytest.mark.megatron


def weights(one_rank, name: str, seed: int) -> dict[str, Tensor]:
    config = load_config([f"model={name}", "rollout.max_response_tokens=64"])
    model = one_rank.policy(config, seed=seed)
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def matrices(some_weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight for name, weight in some_weights.items() if weight.ndim == 2}


def test_the_seed_decides_every_matrix(one_rank):
    first, again, other = (weights(one_rank, "tiny_v3", seed) for seed in (7, 7, 8))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert all((first[name] != other[name]).all() for name in matrices(first))


@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense"])
def test_no_two_matrices_share_their_numbers(name, one_rank):
    # Layers, experts, and the gate and up projection inside one weight, are draws of their own.
    drawn = matrices(weights(one_rank, name, seed=7))
    halves = {
        f"{name} {part}": half
        for name, weight in drawn.items()
        for part, half in enumerate(weight.chunk(2))
    }
    starts = {name: half.flatten()[:8] / half.std() for name, half in halves.items()}
    for (name_a, a), (name_b, b) in combinations(starts.items(), 2):
        assert (a - b).abs().max() > 0.1, f"{name_a} and {name_b} start alike"


# The models' init_std. Four layers of two blocks each write into the residual stream.
@pytest.mark.parametrize(("name", "std"), [("tiny_v3", 0.07), ("tiny_dense", 0.02)])
def test_matrices_are_normal_with_the_stated_std(name, std, one_rank):
    for key, weight in matrices(weights(one_rank, name, seed=7)).items():
        into_residual = key.endswith(("linear_proj.weight", "linear_fc2.weight"))
        expected = std / math.sqrt(8) if into_residual else std
        # Five standard errors of a sample's std and of its mean.
        count = weight.numel()
        assert float(weight.std()) == pytest.approx(expected, rel=5 / math.sqrt(2 * count)), key
        assert abs(float(weight.mean())) < 5 * expected / math.sqrt(count), key


@pytest.mark.parametrize("name", ["tiny_v3", "tiny_dense", "tiny_qwen3_moe"])
def test_norms_start_at_one_and_biases_at_zero(name, one_rank):
    vectors = {n: w for n, w in weights(one_rank, name, seed=7).items() if w.ndim == 1}
    assert vectors
    for key, vector in vectors.items():
        expected = 0.0 if key.endswith("bias") else 1.0
        assert (vector == expected).all(), key


def test_no_expert_is_favoured_at_the_start(one_rank):
    config = load_config(["model=tiny_v3", "rollout.max_response_tokens=64"])
    buffers = dict(one_rank.policy(config).named_buffers())
    biases = [tensor for name, tensor in buffers.items() if name.endswith("expert_bias")]
    assert len(biases) == 3 and all((bias == 0).all() for bias in biases)
