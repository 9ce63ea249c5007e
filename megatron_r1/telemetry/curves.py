"""curves.png: how the run goes, in one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from megatron_r1.telemetry.files import replace_file
from megatron_r1.telemetry.metrics import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_COLUMNS = 3
INK = "#30343b"
GRID = "#e4e6ea"


@dataclass(frozen=True)
class Panel:
    """One curve: which metric, what it is called, its unit, and its colour."""

    metric: str
    title: str
    unit: str
    color: str


PANELS = (
    Panel("reward/mean", "Reward", "mean of a step", "#2f6fb7"),
    Panel("reward/accuracy", "Accuracy", "share of rollouts", "#2e8b57"),
    Panel("reward/format", "Format", "share of rollouts", "#7a5bb5"),
    Panel("rollout/response_tokens_mean", "Response length", "tokens", "#c8701f"),
    Panel("algo/kl_ref", "KL to the reference", "nats per token", "#b8404f"),
    Panel("algo/entropy", "Entropy", "nats per token", "#247f8c"),
    Panel("critic/squared_error", "Critic's squared error", "mean of a step", "#7a5bb5"),
    Panel("preference/accuracy", "Pairs ordered right", "share of pairs", "#2e8b57"),
    Panel("preference/margin", "Margin of the implicit reward", "nats x beta", "#2f6fb7"),
    Panel("distill/divergence", "Divergence from the teacher", "nats per token", "#b8404f"),
    Panel("monitor/learned", "Learned reward", "mean of a phase", "#2f6fb7"),
    Panel("monitor/verified", "Verified reward", "mean of a phase", "#2e8b57"),
    Panel("monitor/repeated_frac", "Repetition", "share of 4-grams", "#c8701f"),
    Panel("monitor/mixed_frac", "Mixed scripts", "share of letters", "#7a5bb5"),
    Panel("monitor/alarms", "Reward-hacking alarms", "hacks named", "#b8404f"),
)


def draw_curves(metrics_path: Path, png_path: Path) -> bool:
    """Draw the panels that have at least one finite value; False, and no file, where none has.

    Faint points are steps, the line is their `moving_average` over about a twentieth of the run.

    Raises:
        DataError: `metrics_path` is not a metrics log.
    """
    rows = read_metrics(metrics_path)
    series = {panel: _points(rows, panel.metric) for panel in PANELS}
    drawn = [panel for panel in PANELS if series[panel]]
    if not drawn:
        return False

    from matplotlib.figure import Figure  # no pyplot: its figures are global and stay in memory

    num_columns = min(NUM_COLUMNS, len(drawn))
    num_rows = -(-len(drawn) // num_columns)
    figure = Figure(figsize=(4.2 * num_columns, 2.9 * num_rows), layout="constrained")
    axes = list(figure.subplots(num_rows, num_columns, squeeze=False).flat)
    last_step = max(row["step"] for row in rows)
    for panel, axis in zip(drawn, axes, strict=False):
        _draw_panel(axis, panel, series[panel], last_step)
    for axis in axes[len(drawn) :]:
        axis.set_visible(False)
    with replace_file(png_path) as draft:
        figure.savefig(draft, format="png", dpi=130)
    return True


def moving_average(values: Sequence[float], window: int) -> list[float]:
    """Mean over the `window` values (odd) around each one; near the ends, over those that exist."""
    half = window // 2
    near = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(some) / len(some) for some in near]


def _points(rows: Sequence[dict[str, Any]], metric: str) -> list[tuple[float, float]]:
    return [(row["step"], row[metric]) for row in rows if row.get(metric) is not None]


def _draw_panel(
    axis: Axes, panel: Panel, points: Sequence[tuple[float, float]], last_step: float
) -> None:
    steps, values = zip(*points, strict=True)
    window = 2 * (len(values) // 40) + 1
    axis.scatter(steps, values, s=8, color=panel.color, alpha=0.22, linewidths=0)
    axis.plot(steps, moving_average(values, window), color=panel.color, linewidth=1.8)
    axis.set_title(panel.title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axis.set_ylabel(panel.unit, fontsize=8.5, color=INK)
    axis.set_xlabel("step", fontsize=8.5, color=INK)
    axis.set_xlim(0, max(last_step, 1))
    axis.margins(y=0.08)
    axis.grid(color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(labelsize=8.5, colors=INK, length=0)
    axis.spines[:].set_visible(False)
