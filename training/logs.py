"""Log of a training: CSV tables that survive a resume, progress for people, and the loss curve as a picture."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

_COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")


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
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows({name: row.get(name) or "" for name in self.columns} for row in self.rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_name(f".{self.path.name}.tmp")
        temporary.write_text(text.getvalue(), encoding="utf-8", newline="")
        temporary.replace(self.path)


def duration(seconds: float) -> str:
    """3 h 05 min, 4 min 10 s or 12 s."""
    whole = round(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{whole} s"


def write_curve(path: Path, curves: Mapping[str, Sequence[tuple[int, float]]], title: str) -> None:
    """Draw curves of (step, value) as an SVG picture; the value axis is logarithmic when all values are above 0."""
    finite = {name: [p for p in points if math.isfinite(p[1])] for name, points in curves.items()}
    drawn = {name: points for name, points in finite.items() if points}
    if not drawn:
        return
    values = [value for points in drawn.values() for _, value in points]
    logarithmic = min(values) > 0
    scale = math.log if logarithmic else float
    low, high = scale(min(values)), scale(max(values))
    high = high if high > low else low + 1
    last = max(max(step for step, _ in points) for points in drawn.values()) or 1
    width, height, left, top = 720, 360, 60, 30

    def place(step: int, value: float) -> str:
        return f"{left + step / last * width:.1f},{top + (high - scale(value)) / (high - low) * height:.1f}"

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width + left + 160}" height="{height + top + 40}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{left}" y="18">{title}{", logarithmic" if logarithmic else ""}</text>',
        f'<rect x="{left}" y="{top}" width="{width}" height="{height}" fill="none" stroke="#888"/>',
    ]
    for index in range(5):
        share = index / 4
        value = high - share * (high - low)
        shown = math.exp(value) if logarithmic else value
        parts.append(f'<text x="4" y="{top + share * height + 4:.0f}">{shown:.4g}</text>')
        parts.append(f'<text x="{left + share * width - 10:.0f}" y="{top + height + 18}">{round(share * last)}</text>')
    for index, (name, points) in enumerate(drawn.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        line = " ".join(place(step, value) for step, value in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{left + width + 8}" y="{top + 14 + 16 * index}" fill="{colour}">{name}</text>')
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([*parts, "</svg>\n"]), encoding="utf-8")
