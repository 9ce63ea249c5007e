from __future__ import annotations

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from megatron_r1.telemetry.tensorboard import TensorboardSink


def write_steps(run_dir, steps, *, resume_step, value):
    sink = TensorboardSink(run_dir, resume_step=resume_step)
    for step in steps:
        sink.write(step, {"train/loss": value})
    sink.close()


def test_a_resumed_run_shows_each_step_once_with_its_latest_value(tmp_path):
    write_steps(tmp_path, range(1, 6), resume_step=0, value=1.0)
    write_steps(tmp_path, range(4, 8), resume_step=3, value=2.0)
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("train/loss")
    assert [(event.step, event.value) for event in events] == [
        *((step, 1.0) for step in (1, 2, 3)),
        *((step, 2.0) for step in (4, 5, 6, 7)),
    ]
