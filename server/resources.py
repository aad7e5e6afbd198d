"""What a machine must have left for a server to start: open files, shared memory, room for the log."""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from pathlib import Path

from server.command import SHARED_MEMORY_BYTES
from server.errors import CannotStart
from server.options import ServerOptions
from server.remains import SHARED_MEMORY

#: Each model process shares a region with tritonserver.
MODEL_PROCESSES = 5
#: Open files of tritonserver that are no caller's (22 were counted), and some for what asks for health and metrics.
SPARE_FILES = 48
#: What the log of one failed start takes.
LOG_BYTES = 1 << 16


def check_resources(options: ServerOptions) -> None:
    """There are open files for every stream, and shared memory for every model process.

    Raises:
        CannotStart: one of them is short; a Triton that finds out itself dies of SIGBUS, or answers no call.
    """
    streams = options.slots + options.queue
    needed, allowed = SPARE_FILES + streams, resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if allowed != resource.RLIM_INFINITY and allowed < needed:
        raise CannotStart(
            f"only {allowed} open files are allowed and {needed} are needed for {streams} streams: "
            "raise the limit (`ulimit -n 4096`; systemd: LimitNOFILE=4096)"
        )
    bytes_needed = MODEL_PROCESSES * SHARED_MEMORY_BYTES
    try:
        free = shutil.disk_usage(SHARED_MEMORY).free
    except OSError as error:
        raise CannotStart(f"{SHARED_MEMORY}, which Triton needs: {error.strerror}") from None
    if free < bytes_needed:
        raise CannotStart(
            f"{SHARED_MEMORY} has {free >> 20} MiB free and Triton needs {bytes_needed >> 20}: free some, or make it "
            "larger (mount -o remount,size=1g; containers: --shm-size=1g)"
        )


def new_log_file() -> Path:
    """An empty file in the temporary folder.

    Raises:
        CannotStart: there is no folder that can be written.
    """
    try:
        handle, name = tempfile.mkstemp(prefix="vita-audio-server-", suffix=".log")
    except OSError as error:
        raise CannotStart(f"no log can be written ({error.strerror}): set TMPDIR, or give --log-file") from None
    os.close(handle)
    return Path(name)


def check_log_file(path: Path) -> int:
    """Make sure that the log can grow, and be read when a start fails. Returns its size.

    Raises:
        CannotStart: it cannot be made or written, is a device or pipe, or its disk is full.
    """
    try:
        if path.exists() and not path.is_file():
            raise CannotStart(f"--log-file: {path} is not a file: give one, and follow it with `tail -F`")
        with path.open("ab") as log:
            size = log.tell()
        free = shutil.disk_usage(path).free
    except OSError as error:
        raise CannotStart(f"--log-file: {path} cannot be written ({error.strerror}): choose another") from None
    if free < LOG_BYTES:
        raise CannotStart(f"--log-file: the disk of {path} is full: free space, or choose another")
    return size
