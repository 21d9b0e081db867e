"""A treemap: rectangles whose areas are shares. They are as square as possible, and their positions are in percent. No
script."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import NamedTuple

from axmem_trace.units import format_bytes


class Rectangle(NamedTuple):
    """Left, top, width and height, in units of the area that was divided."""

    left: float
    top: float
    width: float
    height: float


def divide(sizes: Sequence[float], area: Rectangle) -> list[Rectangle]:
    """One rectangle for each size, with an area in proportion. The sizes must be positive and in decreasing order.

    Squarified treemaps (Bruls, Huizing, van Wijk 2000): rows are laid out along the shorter side. A row ends if another
    rectangle would make the longest rectangle in it longer.

    >>> divide([1, 1], Rectangle(0, 0, 2, 1))
    [Rectangle(left=0, top=0.0, width=1.0, height=1.0), Rectangle(left=1.0, top=0.0, width=1.0, height=1.0)]
    """
    total, rest, placed, start = float(sum(sizes)), area, [], 0
    scale = area.width * area.height / total if total else 0.0
    while start < len(sizes):
        side, end = min(rest.width, rest.height), start + 1
        while end < len(sizes) and _worst(sizes[start : end + 1], side, scale) <= _worst(sizes[start:end], side, scale):
            end += 1
        row, rest = _lay(sizes[start:end], rest, scale)
        placed += row
        start = end
    return placed


def _worst(row: Sequence[float], side: float, scale: float) -> float:
    """The largest ratio of the two sides of a rectangle, in a row along `side`."""
    area = sum(row) * scale
    if not area or not side:
        return float("inf")
    return max(max(side**2 * size * scale / area**2, area**2 / (side**2 * size * scale)) for size in (row[0], row[-1]))


def _lay(row: Sequence[float], area: Rectangle, scale: float) -> tuple[list[Rectangle], Rectangle]:
    """The rectangles of one row along the shorter side, and the remaining area."""
    left, top, width, height = area
    used = sum(row) * scale
    placed = []
    if width >= height:
        thickness, position = used / height, float(top)
        for size in row:
            length = size * scale / thickness
            placed.append(Rectangle(left, position, thickness, length))
            position += length
        return placed, Rectangle(left + thickness, top, width - thickness, height)
    thickness, position = used / width, float(left)
    for size in row:
        length = size * scale / thickness
        placed.append(Rectangle(position, top, length, thickness))
        position += length
    return placed, Rectangle(left, top + thickness, width, height - thickness)


def _has_space(name: str, width: float, height: float) -> bool:
    """Whether size and name are readable in a rectangle. The whole area is 200 by 100, which is about 500 by 260
    pixels."""
    longest = max(len(word) for word in (*name.replace(".", " ").split(), "00.00 GiB"))
    lines = -(-len(name) * 3.2 // max(width - 4, 1)) + 1
    return width - 4 >= 3 * min(longest, 9) and height >= 3 + 6 * lines


def draw_treemap(items: Sequence[tuple[str, int]], class_of: Callable[[str], str], *, label: str) -> str:
    """One picture of the items (name, bytes), which must be sorted, the largest first. `class_of` returns the style of
    a name."""
    shown = [(name, nbytes) for name, nbytes in sorted(items, key=lambda item: -item[1]) if nbytes > 0]
    if not shown:
        return ""
    total = sum(nbytes for _, nbytes in shown)
    rectangles = divide([nbytes for _, nbytes in shown], Rectangle(0.0, 0.0, 200.0, 100.0))
    cells = []
    for (name, nbytes), (left, top, width, height) in zip(shown, rectangles, strict=True):
        place = f"left:{left / 2:.2f}%;top:{top:.2f}%;width:{width / 2:.2f}%;height:{height:.2f}%"
        text = f"<b>{format_bytes(nbytes)}</b>{escape(name)}" if _has_space(name, width, height) else ""
        title = f"{name}: {format_bytes(nbytes)}, {100 * nbytes / total:.1f} %"
        cells.append(f"<div class='{class_of(name)}' style='{place}' title='{escape(title, quote=True)}'>{text}</div>")
    return f"<div class='map' role='img' aria-label='{escape(label, quote=True)}'>{''.join(cells)}</div>"
