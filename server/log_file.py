"""What was written into a log file behind a byte: a server's log may be gigabytes, and goes on after a restart."""

from __future__ import annotations

from pathlib import Path


def written_since(file: Path, begin: int) -> str:
    """Raises OSError: it cannot be read."""
    with file.open("rb") as log:
        log.seek(begin)
        return log.read().decode(errors="replace")


def end_of(file: Path, most_bytes: int) -> str:
    """Raises OSError: it cannot be read."""
    return written_since(file, max(0, file.stat().st_size - most_bytes))
