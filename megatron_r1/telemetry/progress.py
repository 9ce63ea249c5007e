"""One line that says how far a loop is: live on a terminal, now and then in a log."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import Self, TextIO

TERMINAL_EVERY_S = 0.2
_ERASE_LINE = "\r\x1b[2K"


class Progress:
    """Counts towards a total and prints rate, elapsed time and what remains.

        with Progress(512, "rollouts", "decode", enabled=rank == 0) as progress:
            progress.update(done=128, tokens=8_192)

        decode  128/512 rollouts  25%  12.8 rollouts/s  0:10, 0:30 left  tokens 8,192

    A terminal gets one line, rewritten at most five times a second; anything else gets a line every
    `every_s` seconds and one at the end. Disabled, it prints nothing.
    """

    def __init__(
        self,
        total: int,
        unit: str,
        label: str,
        *,
        initial: int = 0,
        stream: TextIO | None = None,
        every_s: float = 10.0,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`initial` of `total` were done before this start; they do not count in the rate."""
        self._total = total
        self._unit = unit
        self._label = label
        self._initial = initial
        self._done = initial
        self._note = ""
        self._fields: dict[str, float | str] = {}
        self._stream = stream if stream is not None else sys.stderr
        self._live = self._stream.isatty()
        self._every_s = TERMINAL_EVERY_S if self._live else every_s
        self._enabled = enabled
        self._clock = clock
        self._started_s = clock()
        self._print_at_s = self._started_s + (0 if self._live else every_s)

    def update(self, done: int, note: str = "", **fields: float | str) -> None:
        """Record that `done` of the total are done; `fields` and `note` end the line."""
        if not self._enabled:
            return
        self._done, self._note, self._fields = done, note, fields
        now_s = self._clock()
        if now_s >= self._print_at_s:
            self._print_at_s = now_s + self._every_s
            self._print(now_s)

    def close(self) -> None:
        """Print the last state, for good. A second call does nothing."""
        if not self._enabled:
            return
        self._enabled = False
        self._print(self._clock())
        if self._live:
            self._stream.write("\n")
            self._stream.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _print(self, now_s: float) -> None:
        line = self._line(now_s - self._started_s)
        if self._live:
            width = shutil.get_terminal_size().columns
            self._stream.write(_ERASE_LINE + line[: width - 1])
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _line(self, elapsed_s: float) -> str:
        rate = (self._done - self._initial) / elapsed_s if elapsed_s > 0 else 0.0
        parts = [
            self._label,
            f"{self._done}/{self._total} {self._unit}",
            f"{self._done / self._total:.0%}" if self._total else "",
            f"{rate:.3g} {self._unit}/s" if rate else "",
            format_duration(elapsed_s) + _remaining(self._total - self._done, rate),
            *(f"{name} {_format_field(value)}" for name, value in self._fields.items()),
            self._note,
        ]
        return "  ".join(part for part in parts if part)


def format_duration(seconds: float) -> str:
    """``0:07``, ``12:05`` or ``3:00:09``."""
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _remaining(num_left: int, rate: float) -> str:
    return f", {format_duration(num_left / rate)} left" if rate and num_left > 0 else ""


def _format_field(value: float | str) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else value
