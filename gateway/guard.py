"""Before every request: where it comes from, whether there is room, its key, and the size of its body.

Nothing is read of a request that is refused. Routes of `KEPT` need a key; the rest (health, the page, the schema) has
nothing in it that a key protects.
"""

from __future__ import annotations

import asyncio
import ipaddress
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.context import Gateway
from gateway.errors import GatewayError, response_of
from gateway.keys import ANYONE, Key
from gateway.settings import Settings
from vita_audio.contract.errors import ServerFull, ServerStopping, VitaError

#: Paths that need a key, where keys are asked for.
KEPT = ("/v1", "/metrics")
#: Paths that are answered by a full gateway, and by one that is about to end.
ALWAYS = ("/health", "/metrics")
#: OpenAI's way to send a key where a browser sets no headers: a WebSocket's subprotocol.
KEY_PROTOCOL = "openai-insecure-api-key."


class Guard:
    """ASGI middleware, around the routes."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or _under(scope["path"], ALWAYS[:1]):
            return await self._app(scope, receive, send)
        try:
            scope.setdefault("state", {})["key"] = self._admit(scope)
        except VitaError as error:
            return await _refuse(error, scope, receive, send)
        self._gateway.running += 1
        try:
            if scope["type"] == "http":
                await self._within_bounds(scope, receive, send)
            else:
                await self._app(scope, receive, send)
        finally:
            self._gateway.running -= 1

    def _admit(self, scope: Scope) -> Key:
        """Whose request it is. Raises VitaError."""
        headers, gateway = Headers(scope=scope), self._gateway
        check_origin(headers, gateway.settings)
        if not _under(scope["path"], ALWAYS):
            if gateway.draining.is_set():
                raise ServerStopping
            if gateway.running >= gateway.settings.max_requests:
                raise ServerFull(gateway.running, 0)
        if gateway.keys is None or not _under(scope["path"], KEPT):
            return ANYONE
        return gateway.keys.find(presented_key(headers, scope))

    async def _within_bounds(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, started = _Body(receive, Headers(scope=scope), self._gateway.settings), False

        async def watched(message: Message) -> None:
            nonlocal started
            if body.refusal is None or started:  # else: what a route makes of the error is not what is wrong
                started = True
                await send(message)

        try:
            body.check_length()
            await self._app(scope, body, watched)
        except Exception:
            if body.refusal is None:
                raise
        if body.refusal is not None and not started:
            await _refuse(body.refusal, scope, receive, send)


class _Body:
    """Receives the body of a request, within its bounds of size and time."""

    def __init__(self, receive: Receive, headers: Headers, settings: Settings) -> None:
        self._receive, self._headers, self._settings = receive, headers, settings
        self._deadline_s = asyncio.get_running_loop().time() + settings.body_timeout_s
        self._bytes, self._complete = 0, False
        self.refusal: GatewayError | None = None

    def check_length(self) -> None:
        """Raises GatewayError when the header says that it is too large."""
        length = self._headers.get("content-length", "0")
        self._add(int(length) if length.isdecimal() else 0)
        self._bytes = 0

    async def __call__(self) -> Message:
        if self._complete:
            return await self._receive()
        try:
            left_s = self._deadline_s - asyncio.get_running_loop().time()
            with anyio.fail_after(left_s):
                message = await self._receive()
        except TimeoutError:
            self.refusal = GatewayError(
                f"the body did not come within {self._settings.body_timeout_s:g} s", code="request_timeout"
            )
            raise self.refusal from None
        self._add(len(message.get("body", b"")))
        self._complete = not message.get("more_body", False)
        return message

    def _add(self, size: int) -> None:
        self._bytes += size
        if self._bytes > self._settings.max_body_bytes:
            self.refusal = GatewayError(
                f"the body is larger than {self._settings.max_body_bytes} bytes; send less", code="body_too_large"
            )
            raise self.refusal


def presented_key(headers: Headers, scope: Scope) -> str | None:
    """What a caller presents as its key, None if nothing."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key:
        return key.strip()
    for protocol in scope.get("subprotocols", ()):
        if protocol.startswith(KEY_PROTOCOL):
            return str(protocol).removeprefix(KEY_PROTOCOL)
    return None


def check_origin(headers: Headers, settings: Settings) -> None:
    """A browser says which page a request comes from: this gateway's own, or one of `settings.origins`.

    Without keys the Host is looked at, too: a page on the internet can give its own name the address of this machine
    (DNS rebinding), and is then of one origin with the gateway.

    Raises:
        GatewayError: the page, or the name, is another one.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    if origin is not None and origin not in settings.origins and _netloc(origin) != host.lower():
        raise GatewayError(
            f"requests from pages of {origin[:100]} are not allowed; --origin allows them", code="origin_not_allowed"
        )
    if settings.keys is None and not _is_safe(_name(host), settings):
        raise GatewayError(
            f"requests to the host name {host[:100]} are not allowed without keys; --host-name allows them",
            code="origin_not_allowed",
        )


def _netloc(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _name(host: str) -> str:
    """Of HOST or HOST:PORT, without brackets."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return host


def _is_safe(name: str, settings: Settings) -> bool:
    """Whether a page elsewhere cannot have this name: it is an address, this machine's, or one of the settings."""
    if name in ("", "localhost") or name.endswith(".localhost") or name in settings.host_names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _under(path: str, roots: tuple[str, ...]) -> bool:
    return any(path == root or path.startswith(root + "/") for root in roots)


async def _refuse(error: VitaError, scope: Scope, receive: Receive, send: Send) -> None:
    """The rest of the body is not wanted: the connection ends with the answer."""
    response = response_of(error)
    response.headers["Connection"] = "close"
    await response(scope, receive, send)
