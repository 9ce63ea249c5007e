"""Which rank of an engine needs which part of each Hugging Face tensor: SGLang's layouts.

SGLang's stock interface gives every rank of an engine every tensor whole, and each keeps its part
(`Receive.whole`). A receiver that takes just its part needs what stands under `Receive.part`.
Engine ranks are SGLang's tensor ranks: of t ranks with d attention replicas and e expert groups,
rank r is number r % (t / d) in attention, r in other blocks, and in experts number r % (t / e) of
group r // (t / e).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import cache

from megatron_r1.config.model import GroupedQueryConfig, MixtureConfig, ModelConfig
from megatron_r1.errors import ConfigError
from megatron_r1.weights.boxes import Shape, Split, slices
from r1_kernels.fp8_blocks import BLOCK

Ranks = tuple[int, ...]

_ATTENTION_ROWS = {"q_proj", "k_proj", "v_proj", "q_b_proj", "kv_b_proj"}
_VOCAB_MULTIPLE = 64
"""SGLang pads the vocabulary to this."""
_WAY_OUT = (
    "Give the engine fewer ranks, more attention replicas or expert groups, or dense_replicated"
)
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


class Receive(Enum):
    """What a rank of an engine is sent."""

    whole = "whole"
    """Every tensor, by a broadcast: SGLang's update_weights_from_distributed."""
    part = "part"
    """What it keeps."""


@dataclass(frozen=True)
class Wants:
    """Who needs what of a tensor."""

    split: Split
    receivers: tuple[Ranks, ...]
    """Of each part, ranks within an engine."""


@dataclass(frozen=True)
class EngineLayout:
    """Engines that are all alike."""

    tensor: int = 1
    """Ranks of an engine."""
    expert: int = 1
    """Groups that share the experts; the ranks of a group split each of theirs."""
    attention_replicas: int = 1
    """Data-parallel attention."""
    dense_replicated: bool = False
    """Dense feed-forward blocks and shared experts whole on every rank (moe_dense_tp_size = 1, and
    DeepEP), which wide engines need."""
    num_engines: int = 1
    receive: Receive = Receive.whole
    fp8: bool = False
    """Matrices of attention and feed-forward blocks in E4M3, a scale for each 128 x 128."""

    def __post_init__(self) -> None:
        for name in ("expert", "attention_replicas"):
            if self.tensor % getattr(self, name):
                raise ConfigError(
                    f"engine: {name} = {getattr(self, name)} does not divide tensor = "
                    f"{self.tensor}. SGLang shares one set of ranks out in both ways; choose a "
                    "divisor"
                )

    def wants(self, name: str, shape: Shape, model: ModelConfig) -> Wants:
        """Who needs what of a tensor of the name table.

        Raises:
            ConfigError: the engine's ranks cannot share the tensor out.
        """
        ranks = tuple(range(self.tensor))
        if self.receive is Receive.whole or self.tensor == 1:
            return Wants(Split(), (ranks,))
        expert = _EXPERT.search(name)
        if expert:
            return self._expert_wants(name, shape, int(expert[1]), model)
        module = name.split(".")[-2]
        attention_ranks = self.tensor // self.attention_replicas
        if module in ("embed_tokens", "lm_head"):
            parts = attention_ranks if module == "embed_tokens" else self.tensor
            split = Split(0, parts, _VOCAB_MULTIPLE)
            return Wants(split, _every(parts, self.tensor))
        if ".self_attn." in name and (module == "o_proj" or module in _ATTENTION_ROWS):
            heads, copies = model.num_attention_heads, 1
            if module in ("k_proj", "v_proj"):
                assert isinstance(model, GroupedQueryConfig), name
                # Ranks beyond the number of key heads share them.
                heads, copies = model.num_kv_heads, max(1, attention_ranks // model.num_kv_heads)
            dim = int(module == "o_proj")
            return self._evenly(name, shape, dim, attention_ranks, copies, heads=heads)
        if module in ("gate_proj", "up_proj", "down_proj") and not self.dense_replicated:
            return self._evenly(name, shape, int(module == "down_proj"), self.tensor)
        return Wants(Split(), (ranks,))

    def _expert_wants(self, name: str, shape: Shape, expert: int, model: ModelConfig) -> Wants:
        assert isinstance(model, MixtureConfig), name
        if model.num_experts % self.expert:
            raise ConfigError(
                f"engine: expert = {self.expert} does not divide model.num_experts = "
                f"{model.num_experts}. Choose a divisor"
            )
        group, parts = expert // (model.num_experts // self.expert), self.tensor // self.expert
        dim = int(name.split(".")[-2] == "down_proj")
        split = self._evenly(name, shape, dim, parts).split
        return Wants(split, tuple((group * parts + i,) for i in range(parts)))

    def _evenly(
        self,
        name: str,
        shape: Shape,
        dim: int,
        ranks: int,
        copies: int = 1,
        *,
        heads: int | None = None,
    ) -> Wants:
        parts = ranks // copies
        if (heads or shape[dim]) % parts or ranks % copies:
            what = f"{heads} heads" if heads else f"{shape[dim]} along dim {dim}"
            raise ConfigError(
                f"engine: {ranks} ranks cannot share out {name}, {what}, evenly. {_WAY_OUT}"
            )
        split = Split(dim, parts)
        if self.fp8 and len(shape) == 2 and cuts_blocks(split, shape):
            raise ConfigError(
                f"engine: {parts} slices of {name}, {shape[dim]} along dim {dim}, would cut FP8 "
                f"blocks of {BLOCK}. {_WAY_OUT}"
            )
        return Wants(split, _every(parts, self.tensor, copies))


def cuts_blocks(split: Split, shape: Shape) -> bool:
    """Whether a slice begins inside an FP8 block."""
    return any(start % BLOCK for box in slices(split, shape) for start, _ in box)


@cache
def _every(parts: int, num_ranks: int, copies: int = 1) -> tuple[Ranks, ...]:
    """Ranks i * copies, ... of each run of parts * copies ranks get part i."""
    return tuple(
        tuple(r for r in range(num_ranks) if r // copies % parts == i) for i in range(parts)
    )
