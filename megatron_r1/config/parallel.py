"""`conf/parallel/`: degrees of parallelism. The data-parallel one follows from the world size."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from megatron_r1.config.precision import PrecisionConfig
from megatron_r1.errors import ConfigError


class Recompute(Enum):
    """Which activations are dropped and computed again in the backward pass."""

    none = "none"
    selective = "selective"
    """Attention alone, whose memory grows with the square of a sequence in plain code."""
    full = "full"
    """All of each layer but its input."""


@dataclass(kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; their meaning is Megatron-Core's."""

    name: str = "default"
    tensor: int = 1
    pipeline: int = 1
    virtual_pipeline: int = 1
    """Model chunks of each pipeline stage: more than one interleaves them (Megatron's schedule)."""
    pipeline_layers: list[int] | None = None
    """Layers of each chunk in the order of the model, pipeline * virtual_pipeline numbers. None
    balances them, the embedding, the loss and each prediction layer counted as one layer."""
    context: int = 1
    """Ranks that share each sequence in training; in process they decode rows of their own."""
    expert: int = 1
    expert_tensor: int = 1
    """Tensor parallelism inside each expert; independent of `tensor`."""
    sequence: bool | None = None
    """Sequence parallelism beside tensor parallelism. None turns it on when `tensor` > 1."""
    recompute: Recompute = Recompute.none
    max_tokens_per_microbatch: int = 4096
    """Rows are packed into micro-batches of at most this many tokens, which the context ranks
    share; also bounds a prefill."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if type(value) is int and value < 1:
                raise ConfigError(f"parallel.{name} must be >= 1, got {value}")
        if self.sequence and self.tensor == 1:
            raise ConfigError("parallel.sequence=true needs parallel.tensor > 1")
        if self.virtual_pipeline > 1 and self.pipeline == 1:
            raise ConfigError(
                f"parallel.virtual_pipeline = {self.virtual_pipeline} interleaves the chunks of "
                "pipeline stages, and parallel.pipeline is 1. Set parallel.pipeline to 2 or more"
            )

    @property
    def num_chunks(self) -> int:
        """Parts that the layers are split into."""
        return self.pipeline * self.virtual_pipeline

    @property
    def sequence_parallel(self) -> bool:
        return self.tensor > 1 if self.sequence is None else self.sequence

    @property
    def sequence_parts(self) -> int:
        """Between layers a tensor rank holds one of so many parts of a stream's tokens."""
        return self.tensor if self.sequence_parallel else 1

    def stream_multiple(self, precision: PrecisionConfig) -> int:
        """The length of a stream, padding and all, is a multiple of this."""
        if not self.sequence_parallel:
            return precision.token_multiple
        return self.sequence_parts * precision.gathered_multiple

    def packable_tokens(self, precision: PrecisionConfig) -> int:
        """The longest stream of a micro-batch, and so the longest row."""
        multiple = self.stream_multiple(precision)
        return self.max_tokens_per_microbatch // multiple * multiple
