"""A line of numbers drawn in braille: two points across and four down in each character."""

import math

_BLANK = 0x2800
_BITS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # by row from the top, then column


def plot(points: list[tuple[float, float]], low: float, high: float, *, columns: int, rows: int) -> list[str]:
    """Rows of text, the top one first: y from `low` to `high` over x from its first to its last.

    Points that share a column of dots are averaged, and what lies between is joined. What is outside low…high is drawn
    at the edge; what is not finite leaves a gap.
    """
    across, down = 2 * columns, 4 * rows
    grid = [[0] * columns for _ in range(rows)]
    before = None
    for x, height in enumerate(_heights(points, across)):
        if height is None:
            before = None
            continue
        y = min(down - 1, max(0, round((high - height) / ((high - low) or 1.0) * (down - 1))))
        # the way from the height before is drawn in this column, so that a steep fall is a line and no dots
        for dot in range(min(before, y), max(before, y) + 1) if before is not None else (y,):
            grid[dot // 4][x // 2] |= _BITS[dot % 4][x % 2]
        before = y
    return ["".join(chr(_BLANK | bits) if bits else " " for bits in row) for row in grid]


def _heights(points: list[tuple[float, float]], across: int) -> list[float | None]:
    """The mean height of each column of dots, or the line between its neighbours; None within a gap."""
    left, width = points[0][0], (points[-1][0] - points[0][0]) or 1
    columns: dict[int, list[float]] = {}
    for x, y in points:
        columns.setdefault(min(across - 1, int((x - left) / width * across)), []).append(y)
    heights: list[float | None] = [None] * across
    before = None
    for x in sorted(columns):
        finite = [y for y in columns[x] if math.isfinite(y)]
        if not finite:
            before = None
            continue
        heights[x] = sum(finite) / len(finite)
        for between in range(before + 1, x) if before is not None else ():
            share = (between - before) / (x - before)
            heights[between] = heights[before] + share * (heights[x] - heights[before])
        before = x
    return heights
