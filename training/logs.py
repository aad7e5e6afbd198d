"""Log of a training: CSV tables that survive a resume, progress for people, and the loss curve as a picture."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from training.files import whole_file


class Table:
    """One CSV file with a `step` column; a new column rewrites the file with empty cells above."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, str]] = []
        self.columns = ["step"]
        if path.exists():
            with path.open(newline="", encoding="utf-8") as file:
                reader = csv.DictReader(file)
                self.columns = list(reader.fieldnames or ["step"])
                self.rows = [row for row in reader if (row.get("step") or "").isdigit() and None not in row]

    def truncate(self, step: int) -> None:
        """Drop rows after `step`: a resumed run writes them again."""
        self.rows = [row for row in self.rows if int(row["step"]) <= step]
        if self.path.exists():
            self._rewrite()

    def append(self, step: int, values: Mapping[str, float]) -> None:
        row = {"step": str(step), **{name: f"{value:.6g}" for name, value in values.items()}}
        self.rows.append(row)
        new = [name for name in row if name not in self.columns]
        self.columns += new
        if new or not self.path.exists():
            self._rewrite()
        else:
            with self.path.open("a", newline="", encoding="utf-8") as file:
                csv.DictWriter(file, self.columns).writerow(row)

    def column(self, name: str) -> list[tuple[int, float]]:
        """(step, value) of every row that has a value."""
        return [(int(row["step"]), float(row[name])) for row in self.rows if row.get(name)]

    def _rewrite(self) -> None:
        with whole_file(self.path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows({name: row.get(name) or "" for name in self.columns} for row in self.rows)


def duration(seconds: float) -> str:
    """3 h 05 min, 4 min 10 s or 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def write_curve(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Draw curves of (step, value) as an SVG picture; the value axis is logarithmic when all values are above 0."""
    finite = {name: [point for point in points if math.isfinite(point[1])] for name, points in curves.items()}
    drawn = {name: points for name, points in finite.items() if points}
    if not drawn:
        return
    from matplotlib.figure import Figure  # most commands draw nothing and need not load it
    from matplotlib.ticker import LogFormatter

    figure = Figure(figsize=(9, 4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="step", ylabel="loss")
    for name, points in drawn.items():
        axes.plot(*zip(*points, strict=True), marker="." if len(points) == 1 else None, linewidth=1.2, label=name)
    if min(value for points in drawn.values() for _, value in points) > 0:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter())
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), fontsize="small", frameon=False)
    with whole_file(path) as temporary:
        figure.savefig(temporary, format="svg", metadata={"Date": None})
