"""Which rank of a trainer holds which part of each parameter: arithmetic on the degrees alone.

Ranks of a pipeline stage follow one another (Megatron-Core's order tp-cp-ep-dp-pp). Number r of a
stage is tensor rank r % tensor; for experts it is expert-tensor rank r % expert_tensor and expert
rank r // expert_tensor % expert. Ranks alike in that hold the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

from megatron_r1.config.model import MixtureConfig, ModelConfig
from megatron_r1.config.parallel import ParallelConfig
from megatron_r1.parallel.pipeline_split import layers_per_chunk
from megatron_r1.weights.boxes import Split
from megatron_r1.weights.names import NameMapping

# Modules whose weights tensor ranks share, and along which dim. The rest is on each of them.
_COLUMN_PARALLEL = {
    "word_embeddings",
    "output_layer",
    "linear_qkv",
    "linear_q_proj",
    "linear_q_up_proj",
    "linear_kv_up_proj",
    "linear_fc1",
    "eh_proj",
}
_ROW_PARALLEL = {"linear_proj", "linear_fc2"}

_LAYER = re.compile(r"^decoder\.layers\.(\d+)\.")
_EXPERT = re.compile(r"\.local_experts\.(\d+)\.")


@dataclass(frozen=True)
class Holding:
    """Where the shards of one parameter are."""

    split: Split
    """Of the parameter, and in the same way of each Hugging Face tensor that it is made of."""
    stages: tuple[int, ...]
    """Pipeline stages, each with the whole parameter on its ranks; most often one."""
    first: int
    """Rank within the stage that is the first to hold shard 0; shard i is i further on."""
    stride: int
    """From there to the next one that holds the same."""
    stage_size: int

    def ranks(self, stage: int, shard: int) -> range:
        """Who holds a shard, in a stage that has the parameter."""
        start = stage * self.stage_size
        return range(start + self.first + shard, start + self.stage_size, self.stride)

    def shard_of(self, rank: int) -> int:
        """Which one a rank holds that holds one."""
        return (rank % self.stage_size - self.first) % self.stride


@dataclass(frozen=True)
class TrainerLayout:
    """A model on the ranks of a training job."""

    model: ModelConfig
    parallel: ParallelConfig
    world_size: int

    @property
    def num_stages(self) -> int:
        return self.parallel.pipeline

    @property
    def stage_size(self) -> int:
        return self.world_size // self.parallel.pipeline

    def stage_of(self, rank: int) -> int:
        return rank // self.stage_size

    def holding(self, mapping: NameMapping) -> Holding:
        """Where a parameter of the name table is."""
        name, parallel = mapping.megatron, self.parallel
        expert = _EXPERT.search(name)
        split = _split(name, parallel.expert_tensor if expert else parallel.tensor)
        first, stride = 0, split.parts
        if expert:
            first = int(expert[1]) // self._experts_per_rank * parallel.expert_tensor
            stride = parallel.expert_tensor * parallel.expert
        return Holding(split, self._stages(name), first, stride, self.stage_size)

    def local_name(self, mapping: NameMapping, stage: int) -> str:
        """The parameter's name in `Policy.named_parameters` of the ranks of a stage that hold it.

        Experts count from 0 on each rank, and tied embeddings are the head of the last stage.
        """
        name = mapping.megatron
        if name.startswith("embedding.") and stage > 0 and self.model.tie_embeddings:
            return "output_layer.weight"
        expert = _EXPERT.search(name)
        if expert is None:
            return name
        local = int(expert[1]) % self._experts_per_rank
        return _EXPERT.sub(f".local_experts.{local}.", name)

    @property
    def _experts_per_rank(self) -> int:
        assert isinstance(self.model, MixtureConfig), f"{self.model.name} has no experts"
        return self.model.num_experts // self.parallel.expert

    @cached_property
    def _stage_of_layer(self) -> list[int]:
        chunks = layers_per_chunk(self.model, self.parallel)
        return [i % self.num_stages for i, layers in enumerate(chunks) for _ in range(layers)]

    def _stages(self, name: str) -> tuple[int, ...]:
        layer = _LAYER.match(name)
        if layer:
            return (self._stage_of_layer[int(layer[1])],)
        last = self.num_stages - 1
        if not name.startswith("embedding."):
            return (last,)
        # Tied embeddings, and those of prediction layers, have a copy where the head is.
        copied = self.model.tie_embeddings or self.model.num_mtp_layers
        return (0, last) if copied and last else (0,)


def _split(name: str, parts: int) -> Split:
    module = name.split(".")[-2]
    if module in _COLUMN_PARALLEL:
        return Split(0, parts)
    return Split(1, parts) if module in _ROW_PARALLEL else Split()
