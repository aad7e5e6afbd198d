"""Model processes that end while a server starts: Triton (2.51) waits for one that ends early until the start limit."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from server.processes import fields, is_alive, model_processes


class StartWatch:
    """Asked again and again while tritonserver loads its models.

    Args:
        pid: of tritonserver.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen: dict[int, str] = {}
        self._lost: str | None = None

    def ended(self) -> str | None:
        """Which model process has ended, and the signal that ended it; None while all live.

        A dead child of Triton counts too: a stub that lacks a library is gone before its model can be seen. So does,
        for a moment, a shell of Triton's that has done its work: only what lasts is a failure.
        """
        self._seen |= model_processes(self._pid)
        dead = [pid for pid in self._seen if not is_alive(pid)]
        if dead and self._lost is None:  # Triton may reap it before the next question
            self._lost = f"the process of model {self._seen[dead[0]]} ended{_by_signal(dead[0])}"
        unseen = (f"a model process ended{_by_signal(pid)}" for pid in _dead_children(self._pid))
        return self._lost or next(unseen, None)


def _dead_children(parent: int) -> list[int]:
    """Children of a process that it has not waited for."""
    return [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and fields(int(entry.name))[:2] == ["Z", str(parent)]
    ]


def _by_signal(pid: int) -> str:
    """Words for the signal that ended a dead child; none if it ended by itself, or is gone."""
    found = fields(pid)
    status = int(found[-1]) if found and found[0] == "Z" else 0
    if not os.WIFSIGNALED(status):
        return ""
    name = signal.Signals(os.WTERMSIG(status)).name
    return f" by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
