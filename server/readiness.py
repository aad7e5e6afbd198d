"""Waits until a starting server answers, and says in one line why it did not."""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.errors import CannotStart
from server.options import ServerOptions
from vita_audio.contract.fields import ENSEMBLE

POLL_S = 0.05
CALL_TIMEOUT_S = 2.0

#: What the log says of a model that did not load: "... failed to load 'prompt' version 1: Internal: EngineError: ...".
LOAD_FAILURE = re.compile(r"failed to load '([^']+)' version \d+: (.+)")
#: Begins the places in our sources that a reason ends with; Triton escapes its line breaks.
TRACE = r"\n\nAt:"
#: Any error line of the log, without level, time and source file.
ERROR_LINE = re.compile(r'^E\d{4} [\d:.]+ \d+ [\w.]+:\d+\] "?(.+?)"?$', re.MULTILINE)


def wait_until_ready(
    options: ServerOptions, ended: Callable[[], bool], log_file: Path, log_begin: int = 0, model: str = ENSEMBLE
) -> None:
    """Return when the server is live, `model` answers that it is ready, and the other ports are open.

    With TLS a completed handshake is the sign: Triton opens its ports after all models are loaded, and a launcher
    has no client certificate to ask with.

    Raises:
        CannotStart: the process ended, or `options.start_limit_s` passed.
    """
    tls = options.tls is not None and options.grpc_socket is None
    others = [(options.metrics_host, options.metrics_port)]  # Triton opens them after gRPC
    if options.http_port is not None:
        others.append((options.host, options.http_port))
    deadline = time.monotonic() + options.start_limit_s
    while True:
        if ended():
            raise CannotStart(f"Triton ended while it started: {failure_reason(log_file, log_begin)} (log: {log_file})")
        if time.monotonic() > deadline:
            raise CannotStart(f"Triton was not ready after {options.start_limit_s:g} s (log: {log_file})")
        try:
            with _connect(options) as connection:
                answers = _handshake(connection) if tls else True
            if answers and (tls or _model_is_ready(options.triton_url, model)):
                for other in others:
                    socket.create_connection(other, timeout=CALL_TIMEOUT_S).close()
                return
        except OSError:  # the port is not open yet
            pass
        time.sleep(POLL_S)


def failure_reason(log_file: Path, begin: int = 0) -> str:
    """The line of a Triton log, from byte `begin`, that says best why it ended."""
    log = log_file.read_bytes()[begin:].decode(errors="replace")
    failed: dict[str, list[str]] = {}  # reason -> models
    for name, reason in LOAD_FAILURE.findall(log):
        reason = reason.partition(TRACE)[0]
        models = failed.setdefault(" ".join(reason.strip().strip('"').split()), [])
        if name not in models:
            models.append(name)
    if failed:
        return "; ".join(
            f"model{'s' * (len(models) > 1)} {', '.join(models)} did not load: {reason}"
            for reason, models in failed.items()
        )
    errors = ERROR_LINE.findall(log)
    if errors:
        return str(errors[-1])
    lines = [line for line in log.splitlines() if line.strip()]
    return lines[-1] if lines else "it wrote no log"


def _connect(options: ServerOptions) -> socket.socket:
    if options.grpc_socket is None:
        return socket.create_connection((options.host, options.grpc_port), timeout=CALL_TIMEOUT_S)
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(CALL_TIMEOUT_S)
        connection.connect(str(options.grpc_socket))
    except OSError:
        connection.close()
        raise
    return connection


def _handshake(connection: socket.socket) -> bool:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with context.wrap_socket(connection):
        return True


def _model_is_ready(url: str, model: str) -> bool:
    with grpc.insecure_channel(url) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            live = stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=CALL_TIMEOUT_S).live
            ready = stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=CALL_TIMEOUT_S).ready
        except grpc.RpcError:
            return False
    return bool(live and ready)
