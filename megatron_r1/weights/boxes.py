"""Rectangles of tensors, and tensors split into equal slices. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from math import prod

Shape = tuple[int, ...]
Box = tuple[tuple[int, int], ...]
"""Where it begins and ends along each dim of the tensor."""


@dataclass(frozen=True, slots=True)
class Split:
    """A tensor cut into `parts` slices along `dim`; one part is the whole tensor."""

    dim: int = 0
    parts: int = 1
    multiple: int = 1
    """The dim counts as padded to a multiple of this, and of the parts. Slices are as long as those
    of the padded tensor, so the last ones may be shorter, or empty."""


def whole(shape: Shape) -> Box:
    return tuple((0, size) for size in shape)


@cache
def slices(split: Split, shape: Shape) -> tuple[Box, ...]:
    """The box of each part."""
    size = shape[split.dim]
    padded = _round_up(size, split.multiple)
    if padded % split.parts:
        padded = _round_up(size, split.multiple * split.parts)
    step = padded // split.parts
    spans = ((min(i * step, size), min((i + 1) * step, size)) for i in range(split.parts))
    box = whole(shape)
    return tuple((*box[: split.dim], span, *box[split.dim + 1 :]) for span in spans)


@cache
def overlap(a: Box, b: Box) -> Box | None:
    """What lies in both; None where that is nothing."""
    box = tuple((max(x[0], y[0]), min(x[1], y[1])) for x, y in zip(a, b, strict=True))
    return box if all(start < stop for start, stop in box) else None


def shape_of(box: Box) -> Shape:
    return tuple(stop - start for start, stop in box)


def numel(box: Box) -> int:
    return prod(stop - start for start, stop in box)


def within(box: Box, outer: Box) -> tuple[slice, ...]:
    """Index of `box` in a tensor that holds `outer`."""
    return tuple(
        slice(start - origin, stop - origin)
        for (start, stop), (origin, _) in zip(box, outer, strict=True)
    )


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple
