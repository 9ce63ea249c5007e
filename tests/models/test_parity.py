"""Whole policies of every family against Hugging Face's implementations, with the same weights.

Weights travel as they would between this system and the hub: through the table of names into a
safetensors file with a config.json, which transformers reads with its own loader; its gradients
come back through its own writer. Float32 on both sides, which add up in different orders.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from megatron_r1.config.model import MixtureConfig
from megatron_r1.models.policy import Policy
from megatron_r1.weights.hf_config import hf_config
from megatron_r1.weights.names import NameMapping, name_table, to_hf, to_megatron
from tests.models.builders import random_tokens, stream_of
from tests.models.families import FAMILIES, load_family

pytestmark = pytest.mark.megatron

LENGTHS = (1, 7, 200, 33)
"""200 lies beyond the 128 positions that YaRN, and the 64 that Llama's scaling, stretches."""
TOLERANCE = 1e-5
"""Of the largest entry. Sums of a few hundred products are rounded at 6e-8 each."""


@torch.no_grad()
def randomize_what_starts_trivial(policy: Policy) -> None:
    """Norms of 1 and biases of 0 would hide that they are left out or stand in the wrong place."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in (*policy.model.named_parameters(), *policy.model.named_buffers()):
        noise = torch.randn(tensor.shape, generator=generator)
        if "layernorm" in name:
            tensor.copy_(1 + 0.2 * noise)
        elif name.endswith("bias"):
            tensor.copy_(0.1 * noise)


def weights_of(policy: Policy) -> dict[str, Tensor]:
    """What a table has to cover: parameters, and the buffers that change what a model computes."""
    weights = {name: tensor.detach() for name, tensor in policy.model.named_parameters()}
    for name, tensor in policy.model.named_buffers():
        if name.endswith("expert_bias"):
            weights[name] = tensor
    return {name: tensor.cpu() for name, tensor in weights.items()}


def under_hf_names(
    table: list[NameMapping], tensors: dict[str, Tensor], policy: Policy
) -> dict[str, Tensor]:
    return {
        hf_name: tensor
        for mapping in table
        if mapping.megatron in tensors
        for hf_name, tensor in zip(
            mapping.hf, to_hf(mapping, tensors[mapping.megatron], policy.config), strict=True
        )
    }


def differences(covered: list[str], existing: set[str]) -> list[str]:
    """Names that a table misses, invents or has twice; empty for a good one."""
    counts = Counter(covered)
    return [
        *(f"missing: {name}" for name in sorted(existing - set(covered))),
        *(f"unknown: {name}" for name in sorted(set(covered) - existing)),
        *(f"{count} times: {name}" for name, count in sorted(counts.items()) if count > 1),
    ]


@dataclass(frozen=True)
class Pair:
    """The same model twice."""

    policy: Policy
    theirs: torch.nn.Module
    table: list[NameMapping]
    directory: Path

    def saved_by_transformers(self, name: str) -> dict[str, Tensor]:
        """What its writer makes of the module's present parameters, under the hub's names."""
        self.theirs.save_pretrained(self.directory / name)
        return load_file(self.directory / name / "model.safetensors")


@pytest.fixture(scope="module", params=sorted(FAMILIES))
def pair(request, one_rank, tmp_path_factory) -> Pair:
    from transformers import AutoModelForCausalLM

    policy = one_rank.policy(load_family(request.param))
    randomize_what_starts_trivial(policy)
    table = name_table(policy.config)
    directory = tmp_path_factory.mktemp("hub")
    hf_tensors = under_hf_names(table, weights_of(policy), policy)
    save_file(
        {name: tensor.contiguous() for name, tensor in hf_tensors.items()},
        directory / "model.safetensors",
        metadata={"format": "pt"},
    )
    (directory / "config.json").write_text(json.dumps(hf_config(policy.config)))
    theirs, report = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
        output_loading_info=True,
    )
    assert not any(report.values()), report
    return Pair(policy, theirs.eval(), table, directory)


def test_the_table_covers_every_tensor_of_both_sides_once(pair):
    ours = [mapping.megatron for mapping in pair.table]
    assert differences(ours, set(weights_of(pair.policy))) == []
    theirs = [name for mapping in pair.table for name in mapping.hf]
    assert differences(theirs, set(pair.saved_by_transformers("weights"))) == []


def test_a_table_that_misses_or_doubles_a_tensor_is_caught_by_name(pair):
    ours = [mapping.megatron for mapping in pair.table]
    existing = set(weights_of(pair.policy))
    assert differences(ours[1:], existing) == [f"missing: {ours[0]}"]
    assert differences([*ours, ours[-1]], existing) == [f"2 times: {ours[-1]}"]
    assert differences([*ours, "decoder.x"], existing) == ["unknown: decoder.x"]


def test_what_transformers_writes_comes_back_bit_for_bit(pair):
    written, ours = pair.saved_by_transformers("weights"), weights_of(pair.policy)
    for mapping in pair.table:
        tensors = [written[name] for name in mapping.hf]
        back = to_megatron(mapping, tensors, pair.policy.config)
        assert torch.equal(back, ours[mapping.megatron]), mapping.megatron


def test_logits_gradients_and_router_choices_are_transformers(pair):
    tokens_T = random_tokens(sum(LENGTHS))
    # A loss that weighs every logit differently.
    generator = torch.Generator().manual_seed(4)
    weights_TV = torch.randn(sum(LENGTHS), pair.policy.config.vocab_size, generator=generator)

    our_choices: list[Tensor] = []
    our_routers = [m for n, m in pair.policy.model.named_modules() if n.endswith("mlp.router")]
    hooks = [
        router.register_forward_hook(lambda *call: our_choices.append(call[2][1].cpu()))
        for router in our_routers
    ]
    device = pair.policy.host.device
    ours_TV = pair.policy.forward(tokens_T.to(device), stream_of(LENGTHS, device=device))
    (ours_TV * weights_TV.to(device)).sum().backward()

    their_choices: list[Tensor] = []
    their_routers = [m for n, m in pair.theirs.named_modules() if n.endswith("mlp.gate")]
    hooks += [
        router.register_forward_hook(lambda *call: their_choices.append(call[2][2]))
        for router in their_routers
    ]
    # Ours sees all sequences in one stream, theirs one after another.
    theirs_TV = torch.cat([pair.theirs(part[None]).logits[0] for part in tokens_T.split(LENGTHS)])
    (theirs_TV * weights_TV).sum().backward()
    for hook in hooks:
        hook.remove()

    gap = relative_gap(ours_TV.detach().cpu(), theirs_TV.detach())
    assert gap < TOLERANCE, f"logits differ by {gap:.1e} of the largest"
    assert_same_choices(pair, our_choices, their_choices)
    assert_same_gradients(pair)


def relative_gap(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference, as a share of the largest entry."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def assert_same_choices(pair: Pair, ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Ours: bool [T, E] of each layer. Theirs: expert indices [tokens, K], sequence by sequence."""
    config = pair.policy.config
    mixture = isinstance(config, MixtureConfig)
    num_routers = config.num_layers - config.num_dense_layers if mixture else 0
    assert (len(ours), len(theirs)) == (num_routers, num_routers * len(LENGTHS))
    for layer, ours_TE in enumerate(ours):
        chosen_TK = torch.cat(theirs[layer::num_routers])
        theirs_TE = torch.zeros_like(ours_TE).scatter(1, chosen_TK, True)
        assert torch.equal(ours_TE, theirs_TE), f"router of mixture layer {layer}"
        assert len(ours_TE.sum(dim=0).unique()) > 1  # not all experts alike, which would say little


@torch.no_grad()
def assert_same_gradients(pair: Pair) -> None:
    """Their gradients are written as if they were weights, so that they carry the hub's names."""
    ours = {n: p.grad.cpu() for n, p in pair.policy.model.named_parameters()}
    for parameter in pair.theirs.parameters():
        parameter.data, parameter.grad = parameter.grad, None
    theirs = pair.saved_by_transformers("gradients")
    ours = under_hf_names(pair.table, ours, pair.policy)
    buffers = {name for m in pair.table if m.dtype is not None for name in m.hf}
    assert ours.keys() == theirs.keys() - buffers
    for name, gradient in ours.items():
        assert theirs[name].any(), f"{name} has no gradient"
        gap = relative_gap(gradient, theirs[name])
        assert gap < TOLERANCE, f"{name}: gradients differ by {gap:.1e} of the largest entry"
