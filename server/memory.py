"""How much memory a server may hold, how much it holds, and when that is too much.

Memory runs out from outside (large messages, which Triton takes whole) or by a leak. Linux then kills some process, the
launcher perhaps. So the launcher ends Triton first, at once: to drain would mean to wait while memory grows.
"""

from __future__ import annotations

import ctypes
import os
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from server.errors import CannotStart
from server.remains import SHARED_MEMORY

OFF = "off"
#: Between two looks at the memory; the second in a row above the limit counts: a message being read is a peak.
PERIOD_S = 0.5
ABOVE_IN_A_ROW = 2

_SIZE = re.compile(r"(\d+(?:\.\d+)?) ?(?:(%)|([KMGT]?)(?:i?B)?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


#: Of glibc's `mallopt`: how many pools of memory (arenas) there may be.
_M_ARENA_MAX = -8


def take_few_pools() -> bool:
    """Have this process take memory from two pools at most; False where the C library has no such setting.

    glibc gives each thread that starts a pool of its own, up to eight for each core, and keeps them: each start of a
    Triton, which has a thread, would leave the launcher a MiB larger. To be called before there are threads.
    """
    try:
        return bool(ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2))
    except (OSError, AttributeError):
        return False


class MemoryWatch:
    """Finds that more than the limit is held, in two looks in a row.

    Args:
        limit: bytes.
        held: reads the bytes that are held now.
        clock: seconds.
    """

    def __init__(self, limit: int, held: Callable[[], int], clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._held, self._clock = limit, held, clock
        self._next_s, self._above = clock(), 0

    def check(self) -> str | None:
        """What is wrong, in words; None if nothing is, or it is not yet time to look again."""
        now = self._clock()
        if now < self._next_s:
            return None
        self._next_s = now + PERIOD_S
        held = self._held()
        self._above = self._above + 1 if held > self._limit else 0
        if self._above < ABOVE_IN_A_ROW:
            return None
        return f"{held >> 20} MiB of memory are held, more than the {self._limit >> 20} of --memory-limit"


def parse_limit(text: str, available: Callable[[], int] | None = None) -> int | None:
    """Bytes of `--memory-limit`: a size (``6GiB``, bytes), a share of `available` (``90%``), None for ``off``.

    Raises:
        CannotStart: it is none of these.
    """
    if text.strip().lower() == OFF:
        return None
    found = _SIZE.fullmatch(text.strip())
    value = float(found[1]) if found else 0.0
    if found is None or value <= 0 or (found[2] and value > 100):
        raise CannotStart(f"--memory-limit: {text!r} is not valid: a size such as 6GiB, a share such as 90%, or {OFF}")
    if found[2]:
        return int((available or available_bytes)() * value / 100)
    return int(value * _UNITS[found[3].upper()])


def available_bytes(root: Path = Path("/")) -> int:
    """Memory of the machine, or what the control group of this process, or one above it, may have of it."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_group_limits(root)])


def _group_limits(root: Path) -> Iterable[int]:
    """Limits of all control groups that this process is in (version 2, or the memory controller of version 1)."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        top, name = root / "sys/fs/cgroup", "memory.max"
        if controllers:
            top, name = top / "memory", "memory.limit_in_bytes"
        group = top / path.lstrip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                try:
                    yield int((folder / name).read_text())
                except (OSError, ValueError):  # none here; "max"
                    continue


def held_bytes(pids: Iterable[int], prefix: str | None) -> int:
    """Memory of processes that the system cannot take back: what each has alone, and shared memory by name.

    Files that are mapped (engines) are not in it. Costs 0.1 ms a process; `resident_bytes`, which is exact, five.

    Args:
        prefix: begins the names of their regions in /dev/shm; None: there are none.
    """
    page, total = os.sysconf("SC_PAGE_SIZE"), 0
    for pid in pids:
        try:
            resident, shared = Path(f"/proc/{pid}/statm").read_text().split()[1:3]
        except OSError:  # it has ended
            continue
        total += (int(resident) - int(shared)) * page
    for region in SHARED_MEMORY.glob(f"{prefix}*") if prefix else ():
        try:
            total += region.stat().st_blocks * 512
        except OSError:
            continue
    return total
