"""How the commands of this package report an error: one line on stderr, and exit status 1."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console

from vita_audio.contract.errors import VitaError


@contextmanager
def errors_reported(*more: type[Exception]) -> Iterator[None]:
    """Errors of this project and of the system, and those named, end the command."""
    kinds: tuple[type[Exception], ...] = (VitaError, OSError, *more)
    try:
        yield
    except kinds as error:
        Console(stderr=True, highlight=False).print(f"error: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(1) from error
