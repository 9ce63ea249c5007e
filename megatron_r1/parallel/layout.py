"""Degrees of parallelism to process groups. The only reader of Megatron's global parallel state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch.distributed as dist
from megatron.core import parallel_state, tensor_parallel
from torch.distributed import ProcessGroup, distributed_c10d

from megatron_r1.config.parallel import ParallelConfig

T = TypeVar("T")


@dataclass(frozen=True)
class Axis:
    """One parallel axis: its group, and this rank's place in it."""

    group: ProcessGroup
    size: int
    rank: int

    @staticmethod
    def of(group: ProcessGroup) -> Axis:
        return Axis(group=group, size=group.size(), rank=group.rank())


@dataclass(frozen=True)
class Layout:
    """This rank's place in the job. Everyone else is handed groups from here."""

    config: ParallelConfig
    tp: Axis
    pp: Axis
    cp: Axis
    """Ranks that share each sequence in training."""
    dp: Axis
    """Replicas of the whole model; each trains on rows of its own."""
    dp_cp: Axis
    """Ranks that hold the same weights. Each samples its own prompts: to decode, context ranks are
    replicas like others. The context ranks of a replica follow one another."""
    ep: Axis
    replica: Axis
    """The tensor and pipeline ranks that sample together."""

    @property
    def world_size(self) -> int:
        return dist.get_world_size()

    @property
    def rank(self) -> int:
        return dist.get_rank()

    @property
    def is_leader(self) -> bool:
        """Owner of its share of the prompts: tensor and pipeline rank 0."""
        return self.tp.rank == 0 and self.pp.rank == 0

    @property
    def is_main(self) -> bool:
        """The one rank that writes what the job writes once."""
        return self.rank == 0

    @property
    def is_last_stage(self) -> bool:
        return self.pp.rank == self.pp.size - 1

    def own_share(self, items: Sequence[T]) -> Sequence[T]:
        """The part of the job's prompts that is sampled here."""
        return items[self.dp_cp.rank :: self.dp_cp.size]

    @property
    def replicas_step_together(self) -> bool:
        """Experts that are spread over replicas tie the replicas' forward passes together."""
        return self.config.expert * self.config.expert_tensor > self.config.tensor

    def describe(self) -> str:
        """E.g. ``4 ranks: data 2, tensor 2 + sequence, expert 2``."""
        degrees = {
            "data": self.dp.size,
            "context": self.cp.size,
            "tensor": self.tp.size,
            "pipeline": self.pp.size,
            "virtual pipeline": self.config.virtual_pipeline,
            "expert": self.ep.size,
            "expert_tensor": self.config.expert_tensor,
        }
        parts = [f"{name} {size}" for name, size in degrees.items() if size > 1]
        if self.config.sequence_parallel:
            parts.append("sequence parallel")
        noun = "rank" if self.world_size == 1 else "ranks"
        return f"{self.world_size} {noun}" + (f": {', '.join(parts)}" if parts else "")


def enter_layout(config: ParallelConfig, *, seed: int) -> Layout:
    """Build process groups for these degrees, replacing those of an earlier layout in this process.

    `seed` starts Megatron's random streams (initial weights; nothing is dropped out).
    """
    leave_layout()
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=config.tensor,
        pipeline_model_parallel_size=config.pipeline,
        virtual_pipeline_model_parallel_size=(
            config.virtual_pipeline if config.virtual_pipeline > 1 else None
        ),
        context_parallel_size=config.context,
        expert_model_parallel_size=config.expert,
        expert_tensor_parallel_size=config.expert_tensor,
        # Megatron's second groups, on gloo, would wait for ranks that a fake world does not have.
        create_gloo_process_groups=dist.get_backend() != "fake",
    )
    tensor_parallel.model_parallel_cuda_manual_seed(seed, force_reset_rng=True)
    return Layout(
        config=config,
        tp=Axis.of(parallel_state.get_tensor_model_parallel_group()),
        pp=Axis.of(parallel_state.get_pipeline_model_parallel_group()),
        cp=Axis.of(parallel_state.get_context_parallel_group()),
        dp=Axis.of(parallel_state.get_data_parallel_group()),
        dp_cp=Axis.of(parallel_state.get_data_parallel_group(with_context_parallel=True)),
        ep=Axis.of(parallel_state.get_expert_model_parallel_group()),
        replica=Axis.of(parallel_state.get_model_parallel_group()),
    )


def leave_layout() -> None:
    """End the groups of the current layout, if there is one.

    Megatron ends a few; the others it would forget, each with its threads and its sockets.
    """
    if parallel_state.model_parallel_is_initialized():
        groups = parallel_state._global_process_group_list[1:]  # behind the world's
        parallel_state.destroy_model_parallel()
        for group in groups:
            if group in distributed_c10d._world.pg_map:
                dist.destroy_process_group(group)
