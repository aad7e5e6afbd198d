"""Turns into the program it is given, after asking Linux to end it when its parent ends. Run as a script.

A server must never outlive its launcher, even one that was killed. The request (prctl) has to be made in the child
between fork and exec; a tiny program of its own does it without running Python code in a forked threaded process.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """``child.py PARENT_PID PROGRAM ARGUMENTS...``; SIGTERM comes when the thread that started us ends."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != parent:  # it ended before the request was made
        raise SystemExit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
