"""Writes and reads the files of a run: report.html, report.json, streams.csv, and the pictures as SVG files."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from loadtest.errors import LoadTestError, wrong
from loadtest.picture import write
from loadtest.record import StreamRecord
from loadtest.report.page import page, pictures
from loadtest.report.summary import Run, summary

PAGE, FIGURES, STREAMS = "report.html", "report.json", "streams.csv"


def check_folder(folder: Path) -> None:
    """Make the folder of a report, before a run that would end without one.

    Raises:
        LoadTestError: it cannot be made, or nothing can be written into it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise wrong("--out", str(folder), f"no report can be written there ({error.strerror})") from error


def write_report(folder: Path, run: Run) -> Path:
    """All files; the folder is made, earlier files in it are replaced.

    Raises:
        LoadTestError: a file could not be written.
    """
    figures = summary(run)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FIGURES).write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
        (folder / PAGE).write_text(page([figures]), encoding="utf-8")
        write_streams(folder / STREAMS, run.tally.streams)
        for name, picture in pictures(figures).items():
            (folder / f"{name}.svg").unlink(missing_ok=True)
            if not picture.empty:
                write(folder / f"{name}.svg", picture)
    except OSError as error:
        raise LoadTestError(f"{folder}: the report could not be written ({error.strerror})") from error
    return folder


def read_figures(folder: Path) -> dict[str, Any]:
    """The JSON of a report.

    Raises:
        LoadTestError: there is none, or it is not one.
    """
    path = folder / FIGURES
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LoadTestError(
            f"{path}: it cannot be read ({error.strerror}); name the folder of a finished run"
        ) from error
    except ValueError as error:
        raise LoadTestError(f"{path}: not JSON ({error})") from error
    if not isinstance(figures, dict) or "scenarios" not in figures:
        raise LoadTestError(f"{path}: not the report of a load test")
    return figures


def write_streams(path: Path, streams: Sequence[StreamRecord]) -> None:
    rows = [stream.to_row() for stream in streams]
    with path.open("w", newline="", encoding="utf-8") as file:
        names = list(rows[0]) if rows else ["scenario"]
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
