"""Says in the stages before the language model that no place is free: who is refused anyway is not listened to first.

The stages are processes of their own; a file that is there while the language model has no place is all they share.
Only the language model decides: a notice that comes a moment late lets a request through to be refused there.
"""

from __future__ import annotations

import logging
import os
import time
from contextlib import suppress
from pathlib import Path

from vita_audio.contract.errors import ServerFull

log = logging.getLogger(__name__)

#: A notice that nobody has refreshed for so long is that of a process that died: its fault is not "full".
STALE_S = 2.0


class FullNotice:
    """The notice of one server; without a path there is never one."""

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def show(self, load: tuple[int, int] | None) -> None:
        """Put it up with the streams (running, waiting) that a refused caller is told of; None takes it down.

        A full disk is logged, not raised: callers are then refused a little later.
        """
        if self._path is None:
            return
        try:
            if load is None:
                self._path.unlink(missing_ok=True)
            else:
                written = self._path.with_suffix(".new")
                written.write_text("{} {}".format(*load), encoding="ascii")
                written.replace(self._path)
        except OSError:
            log.exception("%s: cannot be written", self._path)

    def refresh(self) -> None:
        """Say that the notice, if it is up, still holds."""
        if self._path is not None:
            with suppress(FileNotFoundError):
                os.utime(self._path)

    def check(self) -> None:
        """Raises ServerFull while the notice is up and fresh."""
        if self._path is None:
            return
        try:
            if time.time() - self._path.stat().st_mtime > STALE_S:
                return
            running, waiting = self._path.read_text(encoding="ascii").split()
        except FileNotFoundError:
            return
        raise ServerFull(int(running), int(waiting))
