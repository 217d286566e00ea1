"""Tables of text: columns of figures under each other."""

from collections.abc import Sequence


def aligned(rows: Sequence[Sequence[str]], *, free: Sequence[int] = (), indent: str = "") -> str:
    """Rows as lines, columns but the first to the right. What stands in a `free` column of the first row may run over those behind it."""
    measured = [[("" if index in free and row is rows[0] else cell) for index, cell in enumerate(row)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*measured, strict=True)]
    return "\n".join(indent + _line(row, widths, free if row is rows[0] else ()).rstrip() for row in rows)


def _line(row: Sequence[str], widths: Sequence[int], free: Sequence[int]) -> str:
    line, end = "", 0
    for index, (cell, width) in enumerate(zip(row, widths, strict=True)):
        start, end = end, end + width + 2
        if index in free:
            line = line.ljust(start) + cell
        elif cell:
            line = line.ljust(start) + (cell.ljust(width) if index == 0 else cell.rjust(width))
    return line
