"""What both directions of a conversion share: options, files of limited size, the report."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TypeVar

import torch

from megatron_r1.weights.names import NameMapping

T = TypeVar("T")
MEGABYTE = 10**6


class WeightDtype(Enum):
    """What weights are written in. The router's expert bias is kept, or float32 in all of them."""

    keep = "keep"
    """As they are read; FP8 as bfloat16."""
    bfloat16 = "bfloat16"
    float16 = "float16"
    float32 = "float32"
    fp8 = "fp8"
    """Hugging Face only: matrices of the layers in blocks of 128 x 128, the rest in bfloat16."""

    def of(self, mapping: NameMapping, read: torch.dtype) -> torch.dtype:
        """In which a weight that was read in `read` is written, where it is not FP8."""
        if self is WeightDtype.keep:
            return read
        main = torch.bfloat16 if self is WeightDtype.fp8 else getattr(torch, self.value)
        return mapping.dtype or main


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did."""

    num_tensors: int
    num_bytes: int
    """Of the files that were written, or found finished."""
    seconds: float
    peak_memory_bytes: int
    """Of this process, since it began."""
    note: str = ""
    """What the user should know besides."""

    def describe(self) -> str:
        gigabytes, peak = self.num_bytes / 1e9, self.peak_memory_bytes / 1e9
        return (
            f"{self.num_tensors} tensors, {gigabytes:.2f} GB in {self.seconds:.1f} s "
            f"({gigabytes / self.seconds:.2f} GB/s), peak memory {peak:.2f} GB"
            + (f"\n{self.note}" if self.note else "")
        )


def make_report(
    num_tensors: int, num_bytes: int, started_s: float, note: str = ""
) -> ConversionReport:
    seconds = time.monotonic() - started_s
    return ConversionReport(num_tensors, num_bytes, seconds, _peak_memory_bytes(), note)


def _peak_memory_bytes() -> int:
    """Linux's own mark: that of getrusage also counts the process that started this one."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def group_by_bytes(
    items: Iterable[T], num_bytes: Callable[[T], int], *, limit: int
) -> list[list[T]]:
    """Consecutive items in groups of at most `limit` bytes, larger ones alone."""
    groups: list[list[T]] = []
    room = 0
    for item in items:
        size = num_bytes(item)
        if size > room or not groups:
            groups.append([])
            room = limit
        groups[-1].append(item)
        room -= size
    return groups
