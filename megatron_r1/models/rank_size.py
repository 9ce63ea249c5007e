"""What one rank of a layout holds of a model, of any size, on a machine of any size."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import torch

from megatron_r1.config.model import ModelConfig
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.config.precision import PrecisionConfig
from megatron_r1.models.policy import Policy
from megatron_r1.parallel.fake_world import fake_world
from megatron_r1.parallel.layout import Layout, enter_layout
from megatron_r1.platform.host import Host, prepare


@dataclass(frozen=True)
class RankSize:
    """Parameters of one rank."""

    held: int
    share: Fraction
    """Each parameter divided by the number of ranks that hold the same: over all ranks of a world
    shares add up to the parameters of the model. Ranks of one pipeline stage have equal shares."""


def rank_size(
    model: ModelConfig, parallel: ParallelConfig, *, rank: int, world_size: int
) -> RankSize:
    """Build this rank's part on the meta device, in a process that has joined no job, and count."""
    prepare()
    host = Host(device=torch.device("meta"), backend="fake")
    with fake_world(rank=rank, world_size=world_size):
        layout = enter_layout(parallel, seed=0)
        policy = Policy(model, layout, PrecisionConfig(), host, seed=0)
        parameters = [parameter for _, parameter in policy.named_parameters()]
        return RankSize(
            held=sum(parameter.numel() for parameter in parameters),
            share=sum((_share(parameter, layout) for parameter in parameters), Fraction()),
        )


def _share(parameter: torch.nn.Parameter, layout: Layout) -> Fraction:
    """Elements of a parameter over the ranks of its stage that hold the same ones."""
    if getattr(parameter, "shared", False):  # the last stage's copy of the embedding
        return Fraction()
    degrees = layout.config
    is_expert = not getattr(parameter, "allreduce", True)
    parts = degrees.expert if is_expert else 1
    if getattr(parameter, "tensor_model_parallel", False):
        parts *= degrees.expert_tensor if is_expert else degrees.tensor
    return Fraction(parameter.numel() * parts * degrees.pipeline, layout.world_size)
