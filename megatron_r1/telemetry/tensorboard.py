"""The numbers of metrics.jsonl, for TensorBoard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


class TensorboardSink:
    """Writes ``tensorboard/`` in the run directory. One process of a run owns it."""

    def __init__(self, run_dir: Path, *, resume_step: int) -> None:
        """Points after `resume_step` that an earlier start wrote are hidden by TensorBoard."""
        from torch.utils.tensorboard import SummaryWriter  # a second to import

        self._writer = SummaryWriter(
            str(run_dir / "tensorboard"), purge_step=resume_step + 1, flush_secs=10
        )

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()
