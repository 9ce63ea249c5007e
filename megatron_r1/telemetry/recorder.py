"""Everything a training loop reports, behind one object: numbers, curves, samples, the progress
line.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from megatron_r1.config.telemetry import TelemetryConfig
from megatron_r1.telemetry.curves import draw_curves
from megatron_r1.telemetry.metrics import METRICS_FILE, MetricsLog
from megatron_r1.telemetry.progress import Progress
from megatron_r1.telemetry.rollouts import PassCount, write_pass_counts, write_rollouts
from megatron_r1.telemetry.tensorboard import TensorboardSink
from megatron_r1.types import ScoredGroup, StepResult

OnCount = Callable[[int, int], None]


_SHOWN = {
    "train/nll": "nll",
    "preference/accuracy": "pairs right",
    "distill/divergence": "nats",
    "reward_model/accuracy": "right",
}
"""What the progress line says of an update without rollouts."""


class Recorder:
    """Writes on the main rank and is silent on the others, so that loops need no `if`."""

    def __init__(
        self,
        run_dir: Path,
        config: TelemetryConfig,
        *,
        label: str,
        first_step: int,
        num_steps: int,
        is_main: bool,
    ) -> None:
        """`first_step` updates were made by earlier starts of this run."""
        self._run_dir = run_dir
        self._config = config
        self._is_main = is_main
        self._step = first_step
        self._num_steps = num_steps
        self._times_s: dict[str, float] = {}
        self.last_times_s: dict[str, float] = {}
        """Seconds of the last step on this rank, by metric."""
        self._phase: dict[str, float] = {}
        self._shown: dict[str, float | str] = {}
        self._step_started_s = time.monotonic()
        self._progress = Progress(
            num_steps,
            "steps",
            label,
            initial=first_step,
            every_s=config.progress_every_s,
            enabled=is_main and config.progress,
        )
        if is_main:
            self._log = MetricsLog(run_dir, resume_step=first_step)
            self._tensorboard = (
                TensorboardSink(run_dir, resume_step=first_step) if config.tensorboard else None
            )

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the block's seconds to the metric `name` of the step that is recorded next."""
        started_s = time.monotonic()
        yield
        elapsed_s = time.monotonic() - started_s
        self._times_s[name] = self._times_s.get(name, 0.0) + elapsed_s

    def on_rollouts(self, total: int) -> OnCount:
        """A callback that shows responses finished out of `total`, and tokens a second."""
        started_s = time.monotonic()

        def show(finished: int, tokens: int) -> None:
            rate = tokens / max(time.monotonic() - started_s, 1e-9)
            self._show(f"rollouts {finished}/{total}, {rate:,.0f} tokens/s")

        return show

    def on_micro_batch(self, what: str) -> OnCount:
        """A callback that shows micro-batches done."""
        return lambda done, total: self._show(f"{what} {done}/{total}")

    def phase(
        self,
        scored: Sequence[ScoredGroup],
        counts: Sequence[Sequence[PassCount]],
        metrics: Mapping[str, float],
    ) -> None:
        """A phase has been scored: `metrics` go with the next step, samples to `rollouts/`, and the
        pass counts of every replica's share to `pass_counts/`."""
        self._phase = dict(metrics)
        seconds = self._times_s.get("time/rollout_s", 0.0)
        num_tokens = metrics.get("rollout/tokens", 0.0)
        self._phase["rollout/tokens_per_s"] = num_tokens / seconds if seconds else math.nan
        shown = {"reward": "reward/mean", "accuracy": "reward/accuracy"}
        self._shown = {label: metrics[name] for label, name in shown.items() if name in metrics}
        if metrics.get("monitor/alarms"):
            self._shown["reward-hacking alarms"] = metrics["monitor/alarms"]
        if self._is_main:
            limit = self._config.rollout_samples
            write_rollouts(self._run_dir, self._step + 1, scored, limit)
            write_pass_counts(self._run_dir, self._step + 1, counts)

    def step(self, step: int, result: StepResult) -> None:
        """Update `step` has been made: write its line."""
        now_s = time.monotonic()
        metrics = {
            **result.metrics,
            **self._phase,
            **self._times_s,
            "train/skipped": float(result.skipped),
            "time/step_s": now_s - self._step_started_s,
        }
        self._step, self._step_started_s = step, now_s
        self.last_times_s = self._times_s
        self._phase, self._times_s = {}, {}
        for name, label in _SHOWN.items():
            if name in metrics:
                self._shown = {label: metrics[name]}
        self._show("")
        if not self._is_main:
            return
        self._log.write(step, metrics)
        if self._tensorboard is not None:
            self._tensorboard.write(step, metrics)
        if step % self._config.curves_every_steps == 0:
            self._draw()

    def close(self, *, draw: bool = True) -> None:
        """Draw the curves a last time and close the files."""
        self._progress.close()
        if self._is_main:
            if draw:
                self._draw()
            self._log.close()
            if self._tensorboard is not None:
                self._tensorboard.close()

    def _show(self, note: str) -> None:
        self._progress.update(self._step, note, **self._shown)

    def _draw(self) -> None:
        draw_curves(self._run_dir / METRICS_FILE, self._run_dir / "curves.png")
