"""What readers share: finding a folder or a file of the layout, reading its lines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from evaluation.errors import EvaluationError


def find(folder: Path, suite: str, *places: str) -> Path:
    """The first of `places` that is there, relative to `folder`.

    Raises:
        EvaluationError: none is; says what was looked for.
    """
    for place in places:
        if (folder / place).exists():
            return folder / place
    state = "does not exist" if not folder.is_dir() else f"is not {suite}: there is no {' or '.join(places)} in it"
    raise EvaluationError(f"{folder} {state}; --data is the folder into which the published archive was unpacked")


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Number and text of each line that is not empty.

    Raises:
        EvaluationError: the file cannot be read as UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"{path} cannot be read as text: {error}") from error
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield number, line.strip("\r")


def split(path: Path, number: int, line: str, separator: str | None, least: int, most: int = -1) -> list[str]:
    """The parts of a line: cut `most` times at `separator` (None: at white space), at least `least` of them.

    Raises:
        EvaluationError: fewer; names file and line.
    """
    parts = [part.strip() for part in line.split(separator, most)]
    if len(parts) < least:
        raise EvaluationError(f"{path}, line {number}: {len(parts)} columns, at least {least} are expected")
    return parts
