"""What one server has outside its launcher, all under one prefix, and the removal of what a dead one left.

    /dev/shm/PREFIX...     shared memory between Triton and its model processes
    /dev/shm/PREFIXserver  its private folder: small files, in memory, at the same place whatever TMPDIR says
    VITA_SERVER=PREFIX     in the environment of every process

Triton's Python backend adds an empty folder under a name of its own choice (`remove_environments`).

The launcher holds a lock (flock) on the private folder. Linux gives it back when the launcher ends, however it ends; so
a folder that can be locked belongs to a dead server. Unlike a process id a lock is not reused, and it holds across
containers that share /dev/shm.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import re
import secrets
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from server.errors import CannotStart

SHARED_MEMORY = Path("/dev/shm")
FOLDER = re.compile(r"(vita_audio_\d+_[0-9a-f]{8}_)server")
MARK = "VITA_SERVER"

#: Where Triton's Python backend makes a folder for packed environments when it is loaded, whatever TMPDIR says. Only an
#: orderly end removes it; no model here has such an environment.
ENVIRONMENTS = Path("/tmp")
#: How far the time of a file may be behind the clock.
FILE_TIME_S = 0.1

#: How long a start may spend on what others left; the next start goes on.
SWEEP_S = 5.0
#: How long killed processes may take to end.
KILLED_S = 3.0

#: Reasons for which a folder is passed over: gone, a file, a link, another user's.
_NOT_OURS = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EACCES)

log = logging.getLogger(__name__)


class Belongings:
    """Prefix, private folder and lock of one server that is about to start.

    Raises:
        CannotStart: /dev/shm takes no folder.
    """

    def __init__(self) -> None:
        while True:
            self.prefix = f"vita_audio_{os.getpid()}_{secrets.token_hex(4)}_"
            self.folder = SHARED_MEMORY / f"{self.prefix}server"
            try:
                self.folder.mkdir(0o700)
                lock = _lock(self.folder)
            except OSError as error:
                raise CannotStart(f"{SHARED_MEMORY}, which Triton needs too: {error.strerror}") from error
            if lock is not None:
                self._lock = lock
                return
            # Another start has swept it between the two lines.

    def remove(self) -> None:
        """Kill the processes, remove the files, release the lock. What cannot be removed is logged, not raised."""
        kill_processes(self.prefix)
        for problem in remove_files(self.prefix):
            log.warning("vita-audio server: %s", problem)
        os.close(self._lock)


def sweep() -> None:
    """Remove what servers of this user left whose launchers are dead; one line of the log says what it was."""
    begin = time.monotonic()
    servers = processes = files = 0
    for folder in sorted(SHARED_MEMORY.glob("vita_audio_*_server")):
        name = FOLDER.fullmatch(folder.name)
        lock = _lock(folder) if name else None
        if name is None or lock is None:
            continue
        if time.monotonic() - begin > SWEEP_S:
            os.close(lock)
            break
        servers += 1
        processes += kill_processes(name[1])
        files += len(list(_files(name[1])))
        for problem in remove_files(name[1]):
            log.warning("vita-audio server: %s", problem)
        os.close(lock)
    if servers:
        log.warning(
            "vita-audio server: removed from %s what dead servers left (servers: %d, processes: %d, files: %d)",
            *(SHARED_MEMORY, servers, processes, files),
        )


def remove_environments(since_s: float) -> None:
    """Remove the empty folders of environments that Triton servers of this user made since `since_s` (Unix time)."""
    for folder in ENVIRONMENTS.glob("python_env_*"):
        with contextlib.suppress(OSError):  # in use: not empty; another user's; or gone
            state = folder.lstat()
            if state.st_uid == os.geteuid() and state.st_ctime > since_s - FILE_TIME_S:
                folder.rmdir()


def processes_of(prefix: str) -> list[int]:
    """Living processes of the server with this prefix; a zombie has no environment."""
    mark, found = f"{MARK}={prefix}".encode(), []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):  # another user's, or ended while we looked
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found


def kill_processes(prefix: str) -> int:
    """Kill the processes of a server except this one, stopped ones too, and wait for their end; how many they were."""
    killed: set[int] = set()
    deadline = time.monotonic() + KILLED_S
    while (found := [pid for pid in processes_of(prefix) if pid != os.getpid()]) and time.monotonic() < deadline:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        killed.update(found)
        time.sleep(0.01)
    return len(killed)


def remove_files(prefix: str) -> list[str]:
    """Remove a server's files in /dev/shm, the folder last. Returns a line for each that stays."""
    problems = []
    for path in sorted(_files(prefix), key=lambda path: path.name == f"{prefix}server"):
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except FileNotFoundError:  # the guard and a sweep may be at it at the same time
            pass
        except OSError as error:
            problems.append(f"{error.filename or path} could not be removed ({error.strerror}): remove {path} by hand")
    return problems


def _files(prefix: str) -> Iterator[Path]:
    return SHARED_MEMORY.glob(f"{prefix}*")


def _lock(folder: Path) -> int | None:
    """Lock a folder of this user; None if its server lives, or another start sweeps it, or it is gone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno in _NOT_OURS:
            return None
        raise
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        state = os.fstat(descriptor)
        if state.st_uid == os.geteuid() and state.st_nlink > 0:  # none: removed before it was locked
            return descriptor
    except BlockingIOError:
        pass
    os.close(descriptor)
    return None
