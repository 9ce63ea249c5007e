"""`conf/parallel/`: degrees of parallelism. The data-parallel one follows from the world size."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_r1.errors import ConfigError


@dataclass(kw_only=True)
class ParallelConfig:
    """Degrees of parallelism; their meaning is Megatron-Core's."""

    name: str = "default"
    tensor: int = 1
    pipeline: int = 1
    expert: int = 1
    expert_tensor: int = 1
    """Tensor parallelism inside each expert; independent of `tensor`."""
    sequence: bool | None = None
    """Sequence parallelism beside tensor parallelism. None turns it on when `tensor` > 1."""
    max_tokens_per_microbatch: int = 4096
    """Rows are packed into micro-batches of at most this many tokens; also bounds a prefill."""

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "expert", "expert_tensor", "max_tokens_per_microbatch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"parallel.{name} must be >= 1, got {getattr(self, name)}")
        if self.sequence and self.tensor == 1:
            raise ConfigError("parallel.sequence=true needs parallel.tensor > 1")

    @property
    def sequence_parallel(self) -> bool:
        return self.tensor > 1 if self.sequence is None else self.sequence
