from __future__ import annotations

import json
import math

import pytest

from megatron_r1.errors import DataError
from megatron_r1.telemetry.metrics import MetricsLog, read_metrics


def write_steps(run_dir, steps, *, resume_step, value):
    log = MetricsLog(run_dir, resume_step=resume_step)
    for step in steps:
        log.write(step, {"train/loss": value})
    log.close()


def test_a_line_is_one_object_with_step_first(tmp_path):
    write_steps(tmp_path, [1], resume_step=0, value=0.5)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "train/loss": 0.5}\n'


def test_a_step_can_be_read_before_the_log_is_closed(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    log.write(1, {"train/loss": 0.5})
    assert read_metrics(tmp_path / "metrics.jsonl") == [{"step": 1, "train/loss": 0.5}]
    log.close()


def test_a_resumed_run_has_each_step_once_with_its_latest_value(tmp_path):
    # Killed at step 5 with a checkpoint at 3: steps 4 and 5 are taken again.
    write_steps(tmp_path, range(1, 6), resume_step=0, value=1.0)
    write_steps(tmp_path, range(4, 8), resume_step=3, value=2.0)
    rows = read_metrics(tmp_path / "metrics.jsonl")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
    assert [row["train/loss"] for row in rows] == [1.0] * 3 + [2.0] * 4


def test_a_torn_last_line_is_dropped_and_the_next_step_starts_a_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train/loss": 1.0}\n{"step": 2, "train/lo')
    assert [row["step"] for row in read_metrics(path)] == [1]
    write_steps(tmp_path, [2], resume_step=1, value=2.0)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_a_last_line_that_lost_only_its_newline_is_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}')
    write_steps(tmp_path, [2], resume_step=1, value=2.0)
    assert [row["step"] for row in read_metrics(path)] == [1, 2]


def test_a_broken_line_in_the_middle_names_file_and_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnonsense\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2"):
        read_metrics(path)


def test_values_that_are_not_finite_are_null(tmp_path):
    log = MetricsLog(tmp_path, resume_step=0)
    log.write(1, {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 2.0})
    log.close()
    expected = '{"step": 1, "a": null, "b": null, "c": null, "d": 2.0}\n'
    assert (tmp_path / "metrics.jsonl").read_text() == expected


def test_opening_leaves_no_temporary_file(tmp_path):
    write_steps(tmp_path, [1, 2], resume_step=0, value=1.0)
    write_steps(tmp_path, [2], resume_step=1, value=1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
