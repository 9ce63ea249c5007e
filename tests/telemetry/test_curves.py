from __future__ import annotations

from megatron_r1.telemetry.curves import PANELS, draw_curves, moving_average
from megatron_r1.telemetry.metrics import MetricsLog

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def write_metrics(run_dir, rows):
    log = MetricsLog(run_dir, resume_step=0)
    for step, metrics in enumerate(rows, start=1):
        log.write(step, metrics)
    log.close()
    return run_dir / "metrics.jsonl"


def png_size(path):
    data = path.read_bytes()
    assert data.startswith(PNG_SIGNATURE)
    return int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")


def test_moving_average_by_hand():
    # (0+3)/2, (0+3+6)/3, (3+6+3)/3, (6+3+0)/3, (3+0)/2
    assert moving_average([0, 3, 6, 3, 0], window=3) == [1.5, 3, 4, 3, 1.5]
    assert moving_average([0, 3, 6, 3, 0], window=1) == [0, 3, 6, 3, 0]
    assert moving_average([0, 3, 6, 3, 0], window=99) == [2.4] * 5


def test_six_panels_stand_in_two_rows_of_three(tmp_path):
    metrics = write_metrics(tmp_path, [{panel.metric: 0.5 for panel in PANELS[:6]}] * 3)
    assert draw_curves(metrics, tmp_path / "curves.png")
    # 3 x 4.2 by 2 x 2.9 inches at 130 dots an inch
    assert png_size(tmp_path / "curves.png") == (1638, 754)


def test_a_metric_that_is_not_logged_has_no_panel(tmp_path):
    metrics = write_metrics(tmp_path, [{"reward/mean": 0.5}, {"reward/mean": float("nan")}])
    assert draw_curves(metrics, tmp_path / "curves.png")
    assert png_size(tmp_path / "curves.png") == (546, 377)


def test_nothing_to_draw_leaves_no_file(tmp_path):
    metrics = write_metrics(tmp_path, [{"train/loss": 1.0}])
    assert not draw_curves(metrics, tmp_path / "curves.png")
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
