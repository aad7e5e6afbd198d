"""Quality against speed as an SVG: one panel per measure, one point per model and mode. Drawn without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 420, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 24, 34, 44
_COLOURS = {"vanilla": "#4c72b0", "balance": "#55a868", "boost": "#dd8452", "turbo": "#c44e52"}
_OTHER = "#777777"


@dataclass(frozen=True, slots=True)
class Point:
    """`x` >= 0 and `y` >= 0; a point with NaN is not drawn."""

    name: str
    mode: str
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Panel:
    """One diagram. `line`: a height to compare with (the teacher's), and what it is."""

    title: str
    y_name: str
    points: tuple[Point, ...]
    line: float = math.nan
    line_name: str = ""


def draw(panels: Sequence[Panel], x_name: str) -> str:
    """The SVG text: panels side by side, axes from 0."""
    width = _WIDTH * len(panels)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{_HEIGHT}" font-family="sans-serif" '
        f'font-size="11"><rect width="{width}" height="{_HEIGHT}" fill="white"/>'
    ]
    for index, panel in enumerate(panels):
        parts.append(f'<g transform="translate({index * _WIDTH} 0)">{_panel(panel, x_name)}</g>')
    return "".join([*parts, "</svg>\n"])


def _panel(panel: Panel, x_name: str) -> str:
    points = [point for point in panel.points if math.isfinite(point.x) and math.isfinite(point.y)]
    top_x = _round_up(max((point.x for point in points), default=1.0) * 1.15)
    heights = [point.y for point in points] + ([panel.line] if math.isfinite(panel.line) else [])
    top_y = _round_up(max(heights, default=1.0) * 1.1)

    def at(x: float, y: float) -> tuple[float, float]:
        across, up = (_WIDTH - _LEFT - _RIGHT) * x / top_x, (_HEIGHT - _TOP - _BOTTOM) * y / top_y
        return round(_LEFT + across, 1), round(_HEIGHT - _BOTTOM - up, 1)

    parts = [_text(_WIDTH / 2, 18, panel.title, "middle", bold=True)]
    parts.append(_text(_WIDTH / 2, _HEIGHT - 8, x_name, "middle"))
    parts.append(f'<g transform="translate(13 {_HEIGHT / 2}) rotate(-90)">{_text(0, 0, panel.y_name, "middle")}</g>')
    for step in range(5):
        x, y = top_x * step / 4, top_y * step / 4
        (left, height), (right, _) = at(0, y), at(top_x, y)
        parts.append(f'<line x1="{left}" x2="{right}" y1="{height}" y2="{height}" stroke="#dddddd"/>')
        parts.append(_text(left - 5, height + 4, f"{y:.3g}", "end"))
        parts.append(_text(at(x, 0)[0], _HEIGHT - _BOTTOM + 15, f"{x:.3g}", "middle"))
    if math.isfinite(panel.line):
        (left, height), (right, _) = at(0, panel.line), at(top_x, panel.line)
        parts.append(
            f'<line x1="{left}" x2="{right}" y1="{height}" y2="{height}" stroke="#777777" stroke-dasharray="4"/>'
        )
        parts.append(_text(right, height - 4, panel.line_name, "end"))
    for point in points:
        x, y = at(point.x, point.y)
        parts.append(f'<circle cx="{x}" cy="{y}" r="5" fill="{_COLOURS.get(point.mode, _OTHER)}"/>')
        parts.append(_text(x, y - 9, point.name, "middle"))
    return "".join(parts)


def _text(x: float, y: float, text: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{weight}>{escape(text)}</text>'


def _round_up(value: float) -> float:
    """The next of 1, 2, 4, 5, 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(factor * power for factor in (1, 2, 4, 5, 8, 10) if factor * power >= value * (1 - 1e-9))
