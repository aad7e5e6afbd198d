"""Members and resident memory of a process tree (/proc), and the shared memory a killed one left (/dev/shm)."""

from __future__ import annotations

from pathlib import Path


def descendants(pid: int) -> list[int]:
    """`pid` and every process below it that is alive now (a zombie is not)."""
    alive: set[int] = set()
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                # "pid (name) state ppid ...": the name may hold spaces and brackets
                state, parent = (entry / "stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:  # ended while we looked
                continue
            if state != "Z":
                alive.add(int(entry.name))
                children.setdefault(int(parent), []).append(int(entry.name))
    found, waiting = [], [pid] if pid in alive else []
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


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


def remove_shared_memory(prefix: str) -> None:
    """Delete the regions that a server which was killed could not delete itself."""
    for region in Path("/dev/shm").glob(f"{prefix}*"):
        region.unlink(missing_ok=True)
