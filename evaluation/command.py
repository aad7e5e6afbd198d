"""How the commands of this package run and end: one line on stderr, and an exit status."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

from vita_audio.contract.errors import VitaError
from vita_audio.stopping import stop_on_signals


def run_command(work: Callable[[Console], None], stopped: str = "stopped") -> int:
    """Exit status of `work`: 0, 1 after an error, 130 after SIGINT or SIGTERM (with the words `stopped`)."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    stop_on_signals()
    try:
        work(console)
    except (VitaError, OSError) as error:
        console.print(f"error: {error}", style="red", markup=False)
        return 1
    except KeyboardInterrupt:
        console.print(stopped, markup=False)
        return 130
    return 0
