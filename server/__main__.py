"""Command line: ``python -m server`` runs the server in the foreground; Ctrl-C drains and stops it."""

from __future__ import annotations

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from server.errors import CannotStart
from server.launch import TritonServer
from server.options import PROFILES, ServerOptions, TlsFiles
from server.ports import is_loopback
from serving.settings import DEVICES

POLL_S = 0.1


def parse_options(arguments: Sequence[str] | None = None) -> tuple[ServerOptions, Path | None]:
    """Options and log file of a command line."""
    default = ServerOptions()
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Start a Triton server for vita_audio: gRPC on this machine only, unless asked otherwise.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--engines", type=Path, default=default.engines, help="folder made by `python -m build_engines`")
    add("--checkpoint", type=Path, help="refuse engines that were not built from this checkpoint")
    add("--profile", choices=PROFILES, default=default.profile, help="which config.pbtxt of each model is used")
    add(
        "--device",
        choices=DEVICES,
        default=default.device,
        help="where torch_cuda engines run (--profile gpu); cpu is slow and needs no GPU: for trying that profile",
    )
    add("--host", default=default.host, help="address of the gRPC and HTTP ports")
    add("--allow-remote", action="store_true", help="needed for a --host that other machines can reach")
    add("--grpc-port", type=int, default=default.grpc_port, help="0 picks a free port")
    add(
        "--http-port",
        type=int,
        help="HTTP is off unless a port is given (docs/triton.md: open advisories on Triton's HTTP server)",
    )
    add("--metrics-port", type=int, default=default.metrics_port, help="Prometheus metrics")
    add("--metrics-host", default=default.metrics_host, help="address of the metrics port; others need --allow-remote")
    add("--slots", type=int, default=default.slots, help="streams that generate at the same time [2 for each core]")
    add(
        "--queue",
        type=int,
        default=default.queue,
        help="streams admitted beyond the slots, queued or only being decoded; the next one is refused as full",
    )
    add("--threads", type=int, default=default.threads, help="CPU threads of each engine process")
    add("--tls-cert", type=Path, help="PEM certificate: serve gRPC over TLS")
    add("--tls-key", type=Path, help="PEM key of --tls-cert")
    add("--tls-ca", type=Path, help="PEM authority of client certificates: demand one from every client (mutual TLS)")
    add(
        "--exit-timeout",
        dest="exit_timeout_s",
        type=int,
        default=default.exit_timeout_s,
        help="seconds that running streams may take to end",
    )
    add("--log-file", type=Path, help="log of Triton and the models (default: a new file in the temporary folder)")
    add("--log-verbose", type=int, default=default.log_verbose, help="Triton's verbosity")
    given = parser.parse_args(arguments)
    if (given.tls_cert is None) != (given.tls_key is None) or (given.tls_ca and not given.tls_cert):
        parser.error("--tls-cert and --tls-key belong together, and --tls-ca needs both")
    values = vars(given)
    log_file, certificate, key, authority = (values.pop(name) for name in ("log_file", "tls_cert", "tls_key", "tls_ca"))
    return ServerOptions(**values, tls=TlsFiles(certificate, key, authority) if certificate else None), log_file


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until a signal or the server's own end. Returns the exit status: 0 after a drain on a signal, 1 otherwise."""
    options, log_file = parse_options(arguments)
    server = TritonServer(options, log_file)
    asked: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        asked.append(number)

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # while it starts, both signals simply end it
    try:
        if options.allow_remote and not is_loopback(options.host):
            say(f"WARNING: {options.host} is reachable from other machines. {remote_warning(options)}")
        server.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, on_signal)
    except CannotStart as error:
        say(f"cannot start: {error}")
        return 1
    except KeyboardInterrupt:
        server.kill()
        say("stopped before it was ready")
        return 1
    say(f"ready after {server.start_seconds:.1f} s: {describe(server)}; log in {server.log_file}; Ctrl-C stops")
    return serve_until_signal(server, asked)


def serve_until_signal(server: TritonServer, asked: Sequence[int]) -> int:
    """Drain at the first signal in `asked`, end at once at the second. Returns the exit status.

    A server that has lost a model process is drained as well, to be started again by what supervises the launcher.
    """
    stopper = threading.Thread(target=server.stop, name="stopper")
    lost: list[str] = []
    while not server.wait(POLL_S):
        if stopper.ident is None:
            # Those that a dying Triton takes along are not lost: it has a round to be gone itself.
            before, lost = lost, server.lost_models()
            if before and not asked:
                say(f"a process of {', '.join(lost)} has ended: see {server.log_file}")
            if before or asked:
                say(f"draining, at most {server.options.exit_timeout_s} s; once more stops now")
                stopper.start()
        elif len(asked) > 1:
            server.kill()
    server.kill()  # removes what is left of it
    if stopper.ident is None:
        say(f"the server ended by itself (status {server.exit_code}): see {server.log_file}")
        return 1
    stopper.join()
    say("stopped")
    return 1 if lost else 0


def describe(server: TritonServer) -> str:
    """Where it listens, in one line."""
    options = server.options
    places = [f"gRPC{' with TLS' if options.tls else ''} on {server.grpc_url}"]
    if server.http_url:
        places.append(f"HTTP on {server.http_url}")
    return ", ".join([*places, f"metrics on {server.metrics_url}"])


def remote_warning(options: ServerOptions) -> str:
    """What an operator must know before this server faces a network (docs/triton.md, "Security")."""
    transport = (
        "Clients are not authenticated" if options.tls else "Nothing is encrypted and clients are not authenticated"
    )
    if options.tls and options.tls.client_ca:
        transport = "Clients need a certificate"
    return (
        f"{transport}, and Triton up to 25.06 has published remote vulnerabilities: "
        "put a current Triton, or a proxy that bounds request sizes, in front of a network you do not trust."
    )


def say(text: str) -> None:
    """One line to the operator."""
    print(f"vita-audio server: {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
