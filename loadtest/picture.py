"""Pictures of measurements, drawn by matplotlib as SVG: inside a page that works offline, or as files.

Axes are in units a person uses (ms, s, %) and begin at 0; percent ends at 100.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The colour-blind safe palette of Okabe and Ito, without its yellow.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#555555")
_LIMIT_COLOUR = "#b00020"
_INCHES = (5.6, 3.5)
#: What fits side by side above a diagram.
_LEGEND_CHARACTERS = 80
_STYLE: Any = {
    "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold", "axes.spines.top": False,
    "axes.spines.right": False, "axes.grid": True, "grid.color": "#e4e4e4", "axes.axisbelow": True,
    "legend.frameon": False, "legend.fontsize": 8, "lines.markersize": 5,
    "svg.hashsalt": "vita-audio",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Series:
    """A line through points in their order, or with `line=False` its points alone.

    Series of one name share a colour and an entry of the legend; `colour` is a number into `COLOURS`.
    """

    name: str
    points: Sequence[tuple[float, float]]
    line: bool = True
    dots: bool = False
    colour: int | None = None


@dataclass(frozen=True, slots=True)
class Picture:
    """One diagram. `limit`: a level to compare with, and what it is. A `y` in % never goes beyond 100."""

    title: str
    x: str
    y: str
    series: Sequence[Series]
    limit: tuple[float, str] | None = None

    @property
    def empty(self) -> bool:
        return not any(each.points for each in self.series)


def draw(*pictures: Picture, form: str = "svg") -> bytes:
    """Pictures side by side, as "svg" or "png". Equal pictures give equal bytes."""
    from matplotlib import rc_context  # a generator process draws nothing and need not load it
    from matplotlib.figure import Figure

    made = io.BytesIO()
    with rc_context(_STYLE):
        figure = Figure(figsize=(_INCHES[0] * len(pictures), _INCHES[1]), layout="constrained")
        for axes, picture in zip(figure.subplots(1, len(pictures), squeeze=False)[0], pictures, strict=True):
            _fill(axes, picture)
        figure.savefig(made, format=form, dpi=110, metadata={"Date": None} if form == "svg" else None)
    return made.getvalue()


def write(path: Path, *pictures: Picture) -> None:
    """As an SVG file."""
    path.write_bytes(draw(*pictures))


def figure_html(picture: Picture) -> str:
    """For a page: everything inside, nothing to load."""
    if picture.empty:
        return (
            f'<figure><figcaption>{escape(picture.title)}</figcaption><p class="none">nothing was measured</p></figure>'
        )
    inside = base64.b64encode(draw(picture)).decode()
    return f'<figure><img alt="{escape(picture.title)}" src="data:image/svg+xml;base64,{inside}"></figure>'


def _fill(axes: Axes, picture: Picture) -> None:
    drawn = [each for each in picture.series if each.points]
    colours: dict[str, str] = {}
    for each in drawn:
        named = each.name not in colours
        wanted = len(colours) if each.colour is None else each.colour
        xs, ys = zip(*each.points, strict=True)
        axes.plot(
            xs, ys, color=colours.setdefault(each.name, COLOURS[wanted % len(COLOURS)]), gid="series",
            linestyle="-" if each.line else "", linewidth=0.8 if len(drawn) > 8 else 1.5,
            marker="o" if each.dots or not each.line else "", label=each.name if named and each.name else None,
        )  # fmt: skip
    if picture.limit is not None:
        level, name = picture.limit
        axes.axhline(level, color=_LIMIT_COLOUR, linestyle="--", linewidth=1.2, label=name)
    axes.set_xlabel(picture.x)
    axes.set_ylabel(picture.y)
    axes.ticklabel_format(style="plain", useOffset=False)
    heights = [y for each in drawn for _, y in each.points] + ([picture.limit[0]] if picture.limit else [])
    if min(heights, default=0.0) >= 0:
        top = max([*heights, 1e-9]) * 1.08
        axes.set_ylim(0, 100 if "%" in picture.y and top > 50 else top)
    if min((x for each in drawn for x, _ in each.points), default=0.0) >= 0:
        axes.set_xlim(left=0)
    if picture.y == "streams":
        axes.locator_params(axis="y", integer=True)
    if not drawn:
        axes.text(0.5, 0.5, "nothing was measured", transform=axes.transAxes, ha="center", color="#888888")
    names, rows = axes.get_legend_handles_labels()[1], 0
    if names:  # above the data, so that no label lies over a line
        columns = max(1, min(len(names), _LEGEND_CHARACTERS // (max(map(len, names)) + 6)))
        rows = math.ceil(len(names) / columns)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=columns, borderaxespad=0.1, handlelength=1.6)
    axes.set_title(picture.title, loc="left", pad=6 + 14 * rows)
