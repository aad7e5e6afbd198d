"""The one error of the launcher: why the server cannot start, in one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from vita_audio.contract.errors import VitaError


class CannotStart(VitaError):
    """A check before the start failed, or Triton ended before it was ready. The text names the cause and the remedy."""


@contextmanager
def refusals_named() -> Iterator[None]:
    """Whatever Linux refuses inside (a file, a socket, a process) becomes a CannotStart that names it."""
    try:
        yield
    except OSError as error:
        what = "the server" if error.filename is None else error.filename
        raise CannotStart(
            f"{what}: {error.strerror or error}: check that this user may use it, and the room on disk and in memory"
        ) from error
