"""Tables that read well on a terminal and are Markdown in a document."""

from __future__ import annotations

from collections.abc import Sequence


def render_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align cells in columns between bars. A column of numbers is aligned to the right.

        | model | pass@1 |
        |:------|-------:|
        | base  |   0.19 |

    Raises:
        ValueError: a row has another number of cells than the header.
    """
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells under {len(header)} headings: {list(row)}")
    columns = list(zip(header, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    to_right = [_is_numeric(column[1:]) for column in columns]

    def render_row(cells: Sequence[str]) -> str:
        aligned = (
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(cells, widths, to_right, strict=True)
        )
        return f"| {' | '.join(aligned)} |"

    rule = "|".join(
        "-" * (width + 1) + ":" if right else ":" + "-" * (width + 1)
        for width, right in zip(widths, to_right, strict=True)
    )
    return "\n".join([render_row(header), f"|{rule}|", *map(render_row, rows)])


def _is_numeric(cells: Sequence[str]) -> bool:
    """Every cell that is not empty or a dash starts like a number: ``0.19``, ``-3``, ``12.5%``."""
    filled = [cell for cell in cells if cell not in ("", "-")]
    return bool(filled) and all(cell.lstrip("+-")[:1].isdigit() for cell in filled)
