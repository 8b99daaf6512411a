"""A plain SVG of costs by size, both on logarithmic scales: one panel per cost, one line per series."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final
from xml.sax.saxutils import escape

_COLOURS: Final = ("#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
_WIDTH: Final = 320
_HEIGHT: Final = 260
_MARGIN: Final = 46


def svg(rows: Sequence[dict[str, Any]], costs: Sequence[tuple[str, str, float]]) -> str:
    """Draw rows with `series`, `number` and the costs: (field, title, unit in microseconds)."""
    names = list(dict.fromkeys(row["series"] for row in rows))
    panels = [
        f'<g transform="translate({index * _WIDTH} 0)">{_panel(rows, names, *cost)}</g>'
        for index, cost in enumerate(costs)
    ]
    legend = [
        f'<circle cx="{20 + 130 * index}" cy="{_HEIGHT + 14}" r="4" fill="{_COLOURS[index % len(_COLOURS)]}"/>'
        f'<text x="{30 + 130 * index}" y="{_HEIGHT + 18}">{escape(name)}</text>'
        for index, name in enumerate(names)
    ]
    width, height = _WIDTH * len(costs), _HEIGHT + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f"{''.join(panels)}{''.join(legend)}</svg>\n"
    )


def _panel(rows: Sequence[dict[str, Any]], names: list[str], field: str, title: str, unit: float) -> str:
    points = [(row["series"], row["number"], max(row[field] / unit, 1e-3)) for row in rows]
    if not points:
        return ""
    right = max(1, math.ceil(math.log10(max(number for _, number, _ in points))))
    low = math.floor(math.log10(min(value for _, _, value in points)))
    high = max(low + 1, math.ceil(math.log10(max(value for _, _, value in points))))

    def place(number: float, value: float) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - _MARGIN - 14) * math.log10(number) / right
        y = _HEIGHT - 26 - (_HEIGHT - 56) * (math.log10(value) - low) / (high - low)
        return round(x, 1), round(y, 1)

    parts = [f'<text x="{_MARGIN}" y="18" font-weight="bold">{escape(title)}, {"ms" if unit > 1 else "µs"}</text>']
    for exponent in range(low, high + 1):
        x, y = place(1, 10.0**exponent)
        parts.append(f'<line x1="{x}" x2="{_WIDTH - 14}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 4}" y="{y + 4}" text-anchor="end">{10.0**exponent:g}</text>')
    for exponent in range(right + 1):
        x, y = place(10.0**exponent, 10.0**low)
        parts.append(f'<text x="{x}" y="{y + 16}" text-anchor="middle">{_short(10**exponent)}</text>')
    for index, name in enumerate(names):
        colour = _COLOURS[index % len(_COLOURS)]
        line = [place(number, value) for series, number, value in points if series == name]
        joined = " ".join(f"{x},{y}" for x, y in line)
        parts.append(f'<polyline points="{joined}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts += [f'<circle cx="{x}" cy="{y}" r="2.5" fill="{colour}"/>' for x, y in line]
    return "".join(parts)


def _short(number: int) -> str:
    return f"{number // 10**6}M" if number >= 10**6 else f"{number // 1000}k" if number >= 1000 else str(number)
