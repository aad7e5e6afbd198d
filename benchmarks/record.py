"""What every measurement keeps: its command, machine, date and revision, rows written as they come, percentiles."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from vita_audio.checkpoint.file_records import write_atomically
from vita_audio.machine import ROOT, describe_machine, revision


def record_head(module: str, arguments: Sequence[str] | None = None, machine: str = "") -> dict[str, Any]:
    """Command, machine, date (UTC) and revision. `arguments`: of the command, None for those of this process."""
    given = sys.argv[1:] if arguments is None else arguments
    return {
        "command": shlex.join(["python", "-m", module, *given]).replace(f"{ROOT}/", ""),
        "machine": machine or describe_machine(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "revision": revision(),
    }


class Results:
    """A record that is written anew at each change, so that a run that is cut short keeps what it had.

    Args:
        path: JSON file; None: kept in memory only.
        fields: what it begins with.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path | None, fields: dict[str, Any]) -> None:
        self._path, self.fields = path, fields
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self.save()

    def save(self, **fields: Any) -> None:
        self.fields |= fields
        if self._path is not None:
            write_atomically(self._path, json.dumps(self.fields, indent=1) + "\n")


def percentile(values: Iterable[float | None], percent: float) -> float | None:
    """Of the values that are known; None of nothing."""
    known = [value for value in values if value is not None]
    return float(np.percentile(known, percent)) if known else None


def spread(name: str, values: Iterable[float | None]) -> dict[str, float | None]:
    """`name`_p50 and `name`_p95."""
    known = list(values)
    return {f"{name}_p{percent}": percentile(known, percent) for percent in (50, 95)}


def number(value: float | None, digits: int = 0, unit: str = "", missing: str = "-") -> str:
    return missing if value is None else f"{value:.{digits}f}{unit}"


def markdown_table(header: str, rows: Iterable[Sequence[str]]) -> str:
    """`header`: names of the columns with "|" between."""
    columns = header.split("|")
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def cells(row: Mapping[str, Any], spec: str, missing: str = "-") -> list[str]:
    """Cells of a table's row by a spec such as "mode ms:2 share:%": as it is, with 2 digits, as percent."""
    made = []
    for key, _, form in (part.partition(":") for part in spec.split()):
        value = row.get(key)
        if value is None:
            made.append(missing)
        elif form == "%":
            made.append(f"{100 * value:.3g} %")
        else:
            made.append(f"{value:.{form}f}" if form else str(value))
    return made
