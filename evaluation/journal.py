"""A file of JSON lines that a run appends to: it survives a kill, and says which run it belongs to."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evaluation.errors import EvaluationError


class Journal:
    """Opened for one run; lines of another run are refused. A line that a kill cut off is dropped.

    Args:
        identity: what makes runs the same (suite, mode, ...); the first line holds it.
        about: more of the run, taken from the file if it is there already.
        key: names an entry; a later entry replaces an earlier one.
    """

    def __init__(self, path: Path, identity: dict[str, Any], about: dict[str, Any], key: str = "id") -> None:
        self._path, self._key = path, key
        self.about = about
        self.entries: dict[str, dict[str, Any]] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            whole = path.read_bytes() if path.exists() else b""
            kept = whole[: whole.rfind(b"\n") + 1]
            rows = [json.loads(line) for line in kept.splitlines()]
        except (OSError, ValueError) as error:
            raise EvaluationError(f"{path} cannot be used: {error}") from error
        if rows:
            self._check(rows[0], identity)
        if len(kept) < len(whole):
            self._cut(len(kept))
        if not rows:
            self._write({"run": identity, "about": about})
            return
        self.about = rows[0]["about"]
        self.entries = {row[key]: row for row in rows[1:]}

    def add(self, entry: dict[str, Any]) -> None:
        """Write one entry, at once.

        Raises:
            EvaluationError: the file cannot be written.
        """
        self._write(entry)
        self.entries[entry[self._key]] = entry

    def _write(self, row: dict[str, Any]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
        except OSError as error:
            raise EvaluationError(f"{self._path} cannot be written: {error}; free space and run it again") from error

    def _cut(self, size: int) -> None:
        try:
            with self._path.open("r+b") as file:
                file.truncate(size)
        except OSError as error:
            raise EvaluationError(f"{self._path} cannot be written: {error}") from error

    def _check(self, first: Any, identity: dict[str, Any]) -> None:
        found = first.get("run") if isinstance(first, dict) else None
        if not isinstance(found, dict):
            raise EvaluationError(f"{self._path} is not of such a run: choose another --out")
        for name, value in identity.items():
            if found.get(name) != value:
                raise EvaluationError(
                    f"{self._path} is of a run with {name} {found.get(name)}, not {value}: choose another --out"
                )
