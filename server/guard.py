"""Starts a command, and ends it with everything below it when the launcher ends, however that ends. Run as a script.

    launcher ── guard ── tritonserver ── model processes

A launcher that is killed cannot clean up, and Triton may ignore a signal that Linux sends on its behalf. The guard
waits for the end of its command, for the end of the launcher, or for the launcher to close its channel; then it kills
all processes below it and ends, in the last two cases after removing the files that bear their prefix. Its exit status
is that of the command; 128 + N when signal N ended it.

SIGTERM, SIGINT and SIGHUP are blocked in the mask that it inherits (`server.guarded`) and hands on: sent to all
processes of a server at once, they reach the launcher alone, which drains.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # isolated mode (-I) leaves it out

from server.processes import descendants
from server.remains import remove_files, sweep

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER = 1, 36
CANNOT_EXECUTE = 127  # a shell's status for it


def main() -> int:
    """``guard.py LAUNCHER_PID CHANNEL PREFIX PROGRAM ARGUMENTS...``; CHANNEL is the descriptor of a socket."""
    launcher, channel = int(sys.argv[1]), socket.socket(fileno=int(sys.argv[2]))
    prefix, command = sys.argv[3], sys.argv[4:]
    channel.set_inheritable(False)
    prctl(PR_SET_CHILD_SUBREAPER, 1)  # whatever loses its parent below becomes a child of the guard, not of init
    signals = wake_on_child()
    guard = os.getpid()
    child = os.fork()
    if child == 0:
        become(command, guard)
    with contextlib.suppress(OSError):  # the launcher has ended: `wait_for_end` notices
        channel.sendall(f"{child}\n".encode())
    ended = wait_for_end(child, launcher, channel, signals)
    status = kill_descendants(child, ended)
    if ended is None:  # else the launcher may start the command again, with the same files
        for problem in remove_files(prefix):
            print(problem, file=sys.stderr)
    if os.getppid() != launcher:
        sweep()  # what the launcher was about to use
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def become(command: list[str], guard: int) -> NoReturn:
    """In the child: turn into `command`, which Linux kills when the guard is killed."""
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == guard:  # else it ended before the request was made
            os.execv(command[0], command)
    except OSError as error:
        print(f"{command[0]} could not be started: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(CANNOT_EXECUTE)


def wake_on_child() -> int:
    """A descriptor that is readable after the end of a child."""
    readable, writable = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(writable)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    return readable


def wait_for_end(child: int, launcher: int, channel: socket.socket, signals: int) -> int | None:
    """Wait until `child`, the launcher or the channel has ended; the status of `child` if it is that."""
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    poll.register(channel, select.POLLIN)
    with contextlib.suppress(OSError):  # no such call before Linux 5.3
        # The channel alone would not do: a process that the launcher forks has its descriptors, and may outlive it.
        poll.register(os.pidfd_open(launcher), select.POLLIN)
    while os.getppid() == launcher:
        ready = [descriptor for descriptor, _ in poll.poll()]
        if signals in ready:
            os.read(signals, 1 << 16)
            status = reap(child)
            if status is not None:
                return status
        if ready != [signals]:
            break
    return None


def reap(child: int) -> int | None:
    """Take in every child that has ended; the status of `child` if it is among them."""
    status = None
    with contextlib.suppress(ChildProcessError):
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            status = ended[1] if ended[0] == child else status
    return status


def kill_descendants(child: int, status: int | None) -> int:
    """Kill until there is none, stopped ones too; the status of `child`, which is `status` if it has ended already."""
    while True:
        for pid in descendants(os.getpid())[1:]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        try:
            # One that was forked meanwhile becomes a child of this process when its parent ends, and has its turn then.
            ended, code = os.waitpid(-1, 0)
        except ChildProcessError:
            assert status is not None, "the command is a child, so its end was seen"
            return status
        status = code if ended == child else status


def prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, int(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option}) failed")


if __name__ == "__main__":
    sys.exit(main())
