"""The front: HAProxy on the public port, Triton on a unix socket behind it.

Triton (2.51) takes messages of any size and any number of calls, and a header of a caller can crash it. The front
bounds the first message of a call, the calls and the connections, lets through what callers need, and encrypts
(`front.cfg`). It answers while Triton is being restarted. Not bounded: later messages of a call; the memory limit
covers them.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from dataclasses import replace
from pathlib import Path

from server.errors import CannotStart, refusals_named
from server.haproxy import Haproxy, find_haproxy, version_of
from server.options import FRONT_AUTO, FRONT_OFF, ServerOptions, TlsFiles
from server.ports import address_of, url_of
from server.processes import is_stopped
from server.stalls import Stillness
from vita_audio.contract.errors import VitaError, to_wire
from vita_audio.contract.limits import MAX_AUDIO_SECONDS, MAX_SAMPLE_RATE_HZ

CONFIG = Path(__file__).with_name("front.cfg")
#: What HAProxy 2.6 answers before a message has come in whole reaches gRPC as "cancelled".
OLDEST = (2, 8)
#: The longest speech at the highest rate, float32, and 4 MiB for all other fields: 96 354 304 bytes.
LARGEST_MESSAGE_BYTES = int(MAX_AUDIO_SECONDS * MAX_SAMPLE_RATE_HZ) * 4 + (4 << 20)
#: 120 s at 16 kHz, which our clients send, are 7.7 MB. More than `LARGE_STREAMS` calls that begin with a larger message
#: do not run at the same time, so that messages being read stay below 1 GB.
LARGE_MESSAGE_BYTES, LARGE_STREAMS = 8 << 20, 4
#: Calls beyond slots and queue which Triton may be refusing at one moment, and questions for health and metadata.
SPARE_STREAMS, QUESTIONS = 32, 64
QUESTION_BYTES = 4096
MAX_CONNECTIONS = 1000
#: How long a caller may neither send nor read while something is due from it.
SILENT_CALLER_S = 120
#: From the beginning of a call's headers to their end, and from there to its message: a busy client takes its time to
#: write 90 MB of speech before it sends the first byte.
FIRST_MESSAGE_S = 30
#: A stopped HAProxy is not left stopped for longer.
STOPPED_S = 1.5
#: Files of HAProxy that are no connection.
SPARE_FILES = 100


def _refusal(code: str, text: str, field: str = "") -> str:
    return to_wire(VitaError(text, code=code, field=field))


#: Texts of the refusals in `front.cfg`. They are in HAProxy's log format: it replaces `%[...]`.
REFUSALS = {
    "NO_METHOD": "only ModelStreamInfer and questions for health and metadata are answered here",
    "NO_MESSAGE": _refusal("invalid_request", f"no message came within {FIRST_MESSAGE_S} s of the call"),
    "COMPRESSED": _refusal("invalid_request", "compressed messages are not taken: send them as they are"),
    "TOO_LARGE": _refusal(
        "invalid_request",
        f"AUDIO: a message of %[var(txn.bytes)] bytes is not valid: at most {LARGEST_MESSAGE_BYTES}, which are "
        f"{MAX_AUDIO_SECONDS:g} s at {MAX_SAMPLE_RATE_HZ} Hz; send less, or at a lower rate",
        "AUDIO",
    ),
    "LONG_QUESTION": _refusal(
        "invalid_request", f"a question of %[var(txn.bytes)] bytes is not valid: it has at most {QUESTION_BYTES}"
    ),
    "FULL": _refusal("server_full", "server is full: too many calls are open; ask another server"),
    "UNHEALTHY": _refusal("unhealthy", "a part of the server is being started again; ask again in a few seconds"),
}


def find_front(choice: str) -> Path | None:
    """The program that `--front` asks for; None is no front.

    Raises:
        CannotStart: it is a path, and no HAProxy that can do this is there.
    """
    if choice == FRONT_OFF:
        return None
    if choice == FRONT_AUTO:
        return find_haproxy(OLDEST)
    if not os.access(choice, os.X_OK) or not Path(choice).is_file():
        raise CannotStart(f"--front: {choice} is not a program: give the path of HAProxy, {FRONT_AUTO} or {FRONT_OFF}")
    if version_of(Path(choice)) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise CannotStart(f"--front: {choice} is not HAProxy {oldest} or later: give its path, or {FRONT_OFF}")
    return Path(choice)


class Front:
    """One HAProxy in front of the incarnations of one server, and its private folder.

    Args:
        program: path of HAProxy.
        options: what is served; `grpc_port` is claimed (not 0).

    Attributes:
        options: the same for Triton behind the front: `grpc_socket` is set.
    """

    def __init__(self, program: Path, options: ServerOptions) -> None:
        self._haproxy = Haproxy(program, CONFIG)
        self._public = options
        self._stillness = Stillness()
        self._log = Path(os.devnull)
        self.options = replace(options, grpc_socket=self._haproxy.folder / f"triton:{options.grpc_port}")

    def start(self, log: Path) -> None:
        """Listen on the public port.

        Args:
            log: gets what HAProxy writes, after what is there.

        Raises:
            CannotStart: HAProxy does not start; with its reason.
        """
        self._log = log
        with refusals_named():
            self._haproxy.start(self._variables(), log)

    @property
    def pids(self) -> list[int]:
        """Process ids of HAProxy; none for the moment in which it is started again."""
        return self._haproxy.pids

    def revive(self) -> str | None:
        """Replace a HAProxy that has lost its guard, or has been stopped (SIGSTOP) for a while. Asked often.

        Returns:
            Why there is none now, in one line; None while there is one.
        """
        if self._haproxy.unguarded:
            try:
                with refusals_named():  # its certificate may be gone
                    self._haproxy.start_again(self._variables(), self._log)
            except CannotStart as error:
                return str(error)
        self._stillness.look(time.monotonic())
        for pid in self.pids:
            stopped = is_stopped(pid)
            if self._stillness.seconds(str(pid), stopped) > STOPPED_S and stopped:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return None

    def stop(self) -> None:
        """End it with every call that runs through it. Does nothing the second time."""
        self._haproxy.stop()

    def _variables(self) -> dict[str, str]:
        """What `front.cfg` reads."""
        options, places = self._public, self._public.slots + self._public.queue
        streams = 2 * places + SPARE_STREAMS
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        connections = MAX_CONNECTIONS
        if files != resource.RLIM_INFINITY:
            connections = max(1, min(connections, (files - SPARE_FILES) // 2))
        variables = {
            "VITA_BIND": url_of(address_of(options.host), options.grpc_port),
            "VITA_TRITON": str(self.options.grpc_socket),
            "VITA_CONNECTIONS": str(connections),
            "VITA_CALLS": str(streams + LARGE_STREAMS + QUESTIONS),
            "VITA_STREAMS": str(streams),
            "VITA_LARGE_STREAMS": str(LARGE_STREAMS),
            "VITA_QUESTIONS": str(QUESTIONS),
            "VITA_QUESTION_BYTES": str(QUESTION_BYTES),
            "VITA_SILENT_CALLER_S": str(SILENT_CALLER_S),
            "VITA_FIRST_MESSAGE_S": str(FIRST_MESSAGE_S),
            "VITA_LARGEST_BYTES": str(LARGEST_MESSAGE_BYTES),
            "VITA_LARGE_BYTES": str(LARGE_MESSAGE_BYTES),
            **{f"VITA_{name}": text for name, text in REFUSALS.items()},
        }
        if options.tls is not None:
            variables |= self._tls(options.tls)
        return variables

    def _tls(self, files: TlsFiles) -> dict[str, str]:
        """HAProxy reads certificate and key from one file."""
        pem = self._haproxy.folder / "pem"
        pem.touch(mode=0o600)
        pem.write_bytes(files.certificate.read_bytes() + b"\n" + files.key.read_bytes())
        authority = {} if files.client_ca is None else {"VITA_CLIENT_CA": str(files.client_ca.resolve())}
        return {"VITA_PEM": str(pem), **authority}
