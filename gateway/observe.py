"""Around every request: its number, its metrics, its line in the log, and an answer to what no route caught."""

from __future__ import annotations

import logging
import time
import uuid

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.context import Gateway, route_of
from gateway.errors import response_of
from vita_audio.contract.errors import VitaError

_STARTS = {"http.response.start", "websocket.http.response.start"}
_log = logging.getLogger(__name__)


class Observe:
    """ASGI middleware, the outermost."""

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        request_id, began_s, status = uuid.uuid4().hex, time.monotonic(), 0

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] in _STARTS or message["type"] == "websocket.accept":
                status = message.get("status", 101)
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id.encode())]
            await send(message)

        metrics = self._gateway.metrics
        metrics.running.inc()
        try:
            await self._app(scope, receive, watched)
        except Exception as error:
            if status:  # the answer has begun: cutting the connection is all that can be said
                raise
            _log.error("fault", exc_info=error, extra={"id": request_id})
            await response_of(VitaError("internal error of the gateway; its log says more"))(scope, receive, watched)
        finally:
            metrics.running.dec()
            self._record(scope, request_id, status, time.monotonic() - began_s)

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        route = route_of(scope)
        self._gateway.metrics.requests.labels(route, str(status)).inc()
        if not route.startswith(("/health", "/metrics")):
            _log.info(
                "request",
                extra={
                    "id": request_id,
                    "method": scope.get("method", "WEBSOCKET"),
                    "route": route,
                    "status": status,
                    "key": scope["state"]["key"].name if "key" in scope.get("state", {}) else None,
                    "ms": round(1e3 * seconds, 1),
                },
            )
