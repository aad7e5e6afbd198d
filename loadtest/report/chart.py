"""Line and dot charts as SVG, inside a page or as a file: no script."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 460, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 12, 30, 42
_FILE_STYLE = (
    "text{font:10.5px sans-serif;fill:#444}.grid{stroke:#eee}.line{fill:none;stroke-width:1.6}"
    ".limit{stroke:#c00;stroke-dasharray:4 3}"
)
_COLOURS = ("#1f6fb4", "#d1602a", "#3a923a", "#8457b0", "#b03a3a", "#6b6b6b")


@dataclass(frozen=True, slots=True)
class Series:
    """A line through points in their order; `dots` also marks each of them. A shared `colour` groups lines."""

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    colour: int | None = None


def chart(title: str, x_label: str, y_label: str, series: Sequence[Series], limit: float | None = None) -> str:
    """One picture of a page. `limit` is a level drawn across it (an SLO)."""
    drawn = [line for line in series if line.points]
    if not drawn:
        return f'<figure><figcaption>{escape(title)}</figcaption><p class="none">nothing was measured</p></figure>'
    inside = _inside(title, x_label, y_label, drawn, limit)
    svg = f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{inside}</svg>'
    return f"<figure><figcaption>{escape(title)}</figcaption>{svg}</figure>"


def picture(title: str, x_label: str, y_label: str, series: Sequence[Series], limit: float | None = None) -> str:
    """The same as an SVG file of its own. Raises ValueError when nothing was measured."""
    drawn = [line for line in series if line.points]
    if not drawn:
        raise ValueError(f"{title}: nothing was measured, there is no picture")
    inside = _inside(title, x_label, y_label, drawn, limit)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
        f"<style>{_FILE_STYLE}</style>"
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>{inside}</svg>\n'
    )


def _inside(title: str, x_label: str, y_label: str, drawn: Sequence[Series], limit: float | None) -> str:
    points = [point for line in drawn for point in line.points]
    xs, ys = [x for x, _ in points], [y for _, y in points] + ([] if limit is None else [limit])
    x_ticks, y_ticks = ticks(min(xs), max(xs)), ticks(min(0.0, *ys), max(ys))

    def at(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    parts = [f"<title>{escape(title)}</title>"]
    for tick in x_ticks:
        x, y = at(tick, y_ticks[0])
        parts.append(f'<text x="{x:.1f}" y="{y + 14:.1f}" text-anchor="middle">{tick:g}</text>')
    for tick in y_ticks:
        x, y = at(x_ticks[0], tick)
        parts.append(f'<path class="grid" d="M{x:.1f} {y:.1f}H{WIDTH - _RIGHT}"/>')
        parts.append(f'<text x="{x - 5:.1f}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    if limit is not None:
        x, y = at(x_ticks[0], limit)
        parts.append(f'<path class="limit" d="M{x:.1f} {y:.1f}H{WIDTH - _RIGHT}"/>')
    for number, line in enumerate(drawn):
        parts += _line(line, _COLOURS[(number if line.colour is None else line.colour) % len(_COLOURS)], at)
    parts += _legend(drawn)
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(f'<text x="6" y="{_TOP - 12}">{escape(y_label)}</text>')
    return "".join(parts)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round numbers that cover low to high, at least two."""
    span = high - low
    if span < 1e-9 * max(abs(low), abs(high), 1.0):  # one value, or as good as
        span = max(abs(high), 1.0)
    step = 10.0 ** math.floor(math.log10(span / about))
    step *= next((factor for factor in (1, 2, 5) if span / (step * factor) <= about), 10)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _line(line: Series, colour: str, at: object) -> list[str]:
    placed = [at(x, y) for x, y in line.points]  # type: ignore[operator]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in placed)
    parts = [f'<path class="line" stroke="{colour}" d="M{path}"/>']
    if line.dots:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in placed]
    return parts


def _legend(drawn: Sequence[Series]) -> list[str]:
    parts, x, seen = [], _LEFT + 90, set()
    for number, line in enumerate(drawn):
        if not line.name or line.name in seen:
            continue
        seen.add(line.name)
        colour = _COLOURS[(number if line.colour is None else line.colour) % len(_COLOURS)]
        parts.append(f'<text x="{x}" y="{_TOP - 12}" fill="{colour}">{escape(line.name)}</text>')
        x += 12 + 7 * len(line.name)
    return parts
