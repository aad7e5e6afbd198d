"""Members and resident memory of a process tree (/proc)."""

from __future__ import annotations

import contextlib
from pathlib import Path

#: Program of every model process.
STUB = "triton_python_backend_stub"


def descendants(pid: int) -> list[int]:
    """`pid` and every process below it that is alive now (a zombie is not)."""
    alive: set[int] = set()
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            parent = _living_parent(int(entry.name))
            if parent is not None:
                alive.add(int(entry.name))
                children.setdefault(parent, []).append(int(entry.name))
    found, waiting = [], [pid] if pid in alive else []
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


def model_processes(pid: int) -> dict[int, str]:
    """The model processes of a tritonserver, and the model of each."""
    models = {}
    for member in descendants(pid):
        with contextlib.suppress(OSError, IndexError, ValueError):  # ended while we looked; another kind of process
            program, model_file = Path(f"/proc/{member}/cmdline").read_text().split("\0")[:2]
            if Path(program).name == STUB:
                models[member] = Path(model_file).parts[-3]  # MODEL/VERSION/model.py
    return models


def is_alive(pid: int) -> bool:
    """Whether a process has not ended; a zombie has."""
    return _living_parent(pid) is not None


def is_stopped(pid: int) -> bool:
    """Whether a signal (SIGSTOP) or a debugger has stopped a process."""
    return _state(pid)[0] in ("T", "t")


def parent(pid: int) -> int:
    """Process id of the parent; 0 when there is no such process."""
    return int(_state(pid)[1] or 0)


def _living_parent(pid: int) -> int | None:
    state, parent = _state(pid)
    return None if state in ("", "Z") else int(parent)


def fields(pid: int) -> list[str]:
    """State, parent and so on: what /proc says behind the name of a process; [] if there is none.

    The name may hold spaces and brackets, and end within a character: Linux cuts it after 15 bytes.
    """
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def _state(pid: int) -> tuple[str, str]:
    """State and parent of a process; empty if there is none."""
    state, parent = (fields(pid) or ["", ""])[:2]
    return state, parent


def resident_bytes(pid: int) -> int:
    """Proportional resident memory (PSS: shared pages are counted once) of `pid` and everything below it."""
    total = 0
    for member in descendants(pid):
        try:
            lines = Path(f"/proc/{member}/smaps_rollup").read_text().splitlines()
        except OSError:  # ended while we looked
            continue
        total += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total
