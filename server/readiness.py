"""Waits until a starting server answers, and says in one line why it did not."""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from server.errors import CannotStart
from server.failure_reason import failure_reason
from server.options import ServerOptions
from vita_audio.contract.fields import ENSEMBLE

POLL_S = 0.05
CALL_TIMEOUT_S = 2.0
#: What Triton gets to end by itself after the end of a model process: its log then has the reason.
LOST_S = 2.0


def wait_until_ready(
    options: ServerOptions,
    ended: Callable[[], bool],
    lost: Callable[[], str | None],
    log_file: Path,
    log_begin: int = 0,
    model: str = ENSEMBLE,
) -> None:
    """Return when the server is live, `model` answers that it is ready, and the other ports are open.

    With TLS a completed handshake is the sign: Triton opens its ports after all models are loaded, and a launcher
    has no client certificate to ask with.

    Args:
        ended: whether Triton has ended.
        lost: which part of it has ended, in words (`server.start_watch`).
        log_file, log_begin: where to look for the reason, and from which byte on.

    Raises:
        CannotStart: Triton or a model process ended, or `options.start_limit_s` passed.
    """
    tls = options.tls is not None and options.grpc_socket is None
    others = [(options.metrics_host, options.metrics_port)]  # Triton opens them after gRPC
    if options.http_port is not None:
        others.append((options.host, options.http_port))
    complete = begin = time.monotonic()  # last seen without a loss
    deadline = begin + options.start_limit_s
    while True:
        if ended():
            raise CannotStart(f"Triton ended while it started: {failure_reason(log_file, log_begin)} (log: {log_file})")
        loss = lost()
        if loss is None:
            complete = time.monotonic()
        elif time.monotonic() > complete + LOST_S:
            reason = failure_reason(log_file, log_begin, f"{loss} while it loaded")
            raise CannotStart(f"{reason} (log: {log_file})")
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
    with grpc.insecure_channel(url, options=[("grpc.enable_http_proxy", 0)]) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        try:
            live = stub.ServerLive(service_pb2.ServerLiveRequest(), timeout=CALL_TIMEOUT_S).live
            ready = stub.ModelReady(service_pb2.ModelReadyRequest(name=model), timeout=CALL_TIMEOUT_S).ready
        except grpc.RpcError:
            return False
    return bool(live and ready)
