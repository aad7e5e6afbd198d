"""Quality against speed: one panel per measure, one point per model and mode."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from loadtest.picture import Picture, Series
from loadtest.picture import draw as draw_pictures

_COLOURS = {"vanilla": 0, "balance": 2, "boost": 1, "turbo": 3}


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
    """The SVG text: panels side by side, axes from 0. A mode has its colour where there is one model."""
    several = any(point.name != point.mode for panel in panels for point in panel.points)
    colours = {} if several else _COLOURS
    pictures = [
        Picture(
            panel.title, x_name, panel.y_name,
            [
                Series(point.name, [(point.x, point.y)], line=False, colour=colours.get(point.mode))
                for point in panel.points
                if math.isfinite(point.x) and math.isfinite(point.y)
            ],
            limit=(panel.line, panel.line_name) if math.isfinite(panel.line) else None,
        )
        for panel in panels
    ]  # fmt: skip
    return draw_pictures(*pictures).decode("utf-8")
