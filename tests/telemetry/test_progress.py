from __future__ import annotations

import io

import pytest

from megatron_r1.telemetry.progress import Progress, format_duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    """Seconds that pass only when the test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, "steps", "train", stream=stream, every_s=10.0, clock=clock)
    for done in range(1, 26):  # one step a second
        clock.now_s += 1
        progress.update(done)
    progress.close()
    progress.close()
    assert stream.getvalue().splitlines() == [
        "train  10/100 steps  10%  1 steps/s  0:10, 1:30 left",
        "train  20/100 steps  20%  1 steps/s  0:20, 1:20 left",
        "train  25/100 steps  25%  1 steps/s  0:25, 1:15 left",
    ]


def test_fields_and_note_end_the_line():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(4, "rollouts", "decode", stream=stream, clock=clock)
    clock.now_s += 2
    progress.update(done=4, tokens=8192, reward=0.123456, note="reference refreshed")
    progress.close()
    expected = "decode  4/4 rollouts  100%  2 rollouts/s  0:02  tokens 8,192  reward 0.1235"
    assert stream.getvalue() == expected + "  reference refreshed\n"


def test_a_resumed_loop_does_not_count_earlier_work_in_its_rate():
    clock, stream = Clock(), io.StringIO()
    progress = Progress(100, "steps", "train", initial=90, stream=stream, clock=clock)
    clock.now_s += 10
    progress.update(done=95)
    # 5 steps in 10 s, 5 left: 10 s
    assert stream.getvalue() == "train  95/100 steps  95%  0.5 steps/s  0:10, 0:10 left\n"


def test_a_terminal_gets_one_line_rewritten_five_times_a_second():
    clock, stream = Clock(), Terminal()
    with Progress(1000, "steps", "train", stream=stream, clock=clock) as progress:
        for done in range(1000):  # a millisecond each
            progress.update(done)
            clock.now_s += 0.001
    # At 0.0, 0.2, 0.4, 0.6 and 0.8 s, and at the end.
    assert stream.getvalue().count("\r") == 6
    assert stream.getvalue().count("\n") == 1
    assert stream.getvalue().endswith("\n")


def test_a_terminal_line_is_cut_at_its_width(monkeypatch):
    monkeypatch.setenv("COLUMNS", "20")
    stream = Terminal()
    Progress(1000, "steps", "a label of thirty-two characters", stream=stream).close()
    assert stream.getvalue() == "\r\x1b[2Ka label of thirty-t\n"


def test_disabled_it_is_silent():
    stream = Terminal()
    with Progress(10, "steps", "train", stream=stream, enabled=False) as progress:
        progress.update(5)
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "text"), [(7.9, "0:07"), (725, "12:05"), (3600, "1:00:00"), (10_809, "3:00:09")]
)
def test_durations(seconds, text):
    assert format_duration(seconds) == text
