"""uvicorn, with what it lacks: it drains, and connections that do not go on are ended."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import sys
import time
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gateway.context import Gateway
from gateway.settings import Settings
from gateway.wyoming_server import WyomingServer
from vita_audio.contract.errors import InvalidRequest

#: For the head of a request; a body has `Settings.body_timeout_s`.
_HEAD_TIMEOUT_S = 10.0
#: Of one WebSocket message. 115 s of speech, the longest turn, are 7.4 MB in base64.
_MAX_MESSAGE_BYTES = 12 << 20
_log = logging.getLogger(__name__)


class BoundedHttp(HttpToolsProtocol):
    """A connection ends when the head of a request has begun, or the connection itself, and the rest does not come."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._expect_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._expect_head()

    def on_headers_complete(self) -> None:
        self._expect_nothing()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        super().connection_lost(exc)

    def _expect_head(self) -> None:
        self._expect_nothing()
        self._head = self.loop.call_later(_HEAD_TIMEOUT_S, self.transport.abort)

    def _expect_nothing(self) -> None:
        if self._head is not None:
            self._head.cancel()
            self._head = None


class Server(uvicorn.Server):
    """Serves an app of `create_app`. The first signal drains: running requests may end, new ones get 503; the second
    one stops at once.

    Raises:
        InvalidRequest: the certificate and its key cannot be used.
    """

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port,
                http=BoundedHttp,
                ws="websockets-sansio",
                ws_max_size=_MAX_MESSAGE_BYTES,
                # Sound hardly gets smaller, and its windows cost each session 300 KB and time.
                ws_per_message_deflate=False,
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                # What still runs after the drain is cut off.
                timeout_graceful_shutdown=1,
                ssl_certfile=settings.tls_certificate,
                ssl_keyfile=settings.tls_key,
            )
        )
        try:
            self.config.load()
        except (OSError, ssl.SSLError) as error:
            raise InvalidRequest(
                "tls_certificate", str(settings.tls_certificate), "it and its key cannot be read as PEM files"
            ) from error
        self._settings = settings
        self._gateway: Gateway = app.state.gateway
        self._wyoming: WyomingServer | None = None
        if settings.wyoming_port is not None:
            self._wyoming = WyomingServer(self._gateway, settings.wyoming_host, settings.wyoming_port)
        self._asked_to_end, self._drained_at_s = False, 0.0

    @property
    def port(self) -> int:
        """Where it listens, once it has started."""
        port: int = self.servers[0].sockets[0].getsockname()[1]
        return port

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._asked_to_end:
            self.should_exit = self.force_exit = True
        self._asked_to_end = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        if self._wyoming is not None:
            try:
                await self._wyoming.listen()
            except OSError as error:  # as uvicorn does for its own port: a line in the log, and the end
                _log.error("Wyoming: %s", error)
                sys.exit(STARTUP_FAILURE)
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                _end_unread(listener, self._settings.write_timeout_s)
        scheme = "http" if self.config.ssl is None else "https"
        host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
        _log.info("listening", extra={"url": f"{scheme}://{host}:{self.port}"})

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._wyoming is not None:
            await self._wyoming.close()
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        gateway = self._gateway
        if self._asked_to_end and not gateway.draining.is_set():
            _log.info("draining", extra={"running": gateway.running})
            self._drained_at_s = time.monotonic() + self._settings.drain_timeout_s
            gateway.draining.set()
        elif gateway.draining.is_set() and (not gateway.running or time.monotonic() > self._drained_at_s):
            self.should_exit = True
        return await super().on_tick(counter)


def _end_unread(listener: Any, timeout_s: float) -> None:
    """The kernel ends a connection whose other side takes nothing for so long; accepted ones inherit this.

    `listener` is asyncio's wrapper of the socket, which sets options like one.
    """
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, max(1, round(timeout_s * 1e3)))
