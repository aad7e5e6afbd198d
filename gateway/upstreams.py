"""The servers behind a gateway: a client for each, health-checked; a request goes to the least loaded."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from typing import Any

from gateway.metrics import Metrics
from vita_client import AsyncClient, Connection, Event, ServerUnavailable, Tls

_CHECK_INTERVAL_S = 1.0
#: How long a server that said it is full comes last.
_FULL_S = 1.0
_LEAST_TIMEOUT_S = 0.1
_log = logging.getLogger(__name__)
#: Sends a request, with so many seconds for its answer: a context with its events.
Ask = Callable[[AsyncClient, float], AbstractAsyncContextManager[Any]]


class Upstream:
    """One server: its client, how many requests use it, and why it is left alone (empty: it is used)."""

    def __init__(self, connection: Connection, metrics: Metrics) -> None:
        self.address, self.client = connection.url, AsyncClient(connection=connection)
        self.running = self.served = 0
        self.full_until_s = 0.0
        self.fault = ""
        self._ready = metrics.server_ready.labels(self.address)
        self._streams = metrics.server_streams.labels(self.address)
        self._ready.set(1)

    def use(self, change: int) -> None:
        """A request begins (1) or ends (-1)."""
        self.running += change
        self.served += change > 0
        self._streams.set(self.running)

    def failed(self, error: ServerUnavailable) -> None:
        """A request found it full or gone."""
        if error.code == "server_full":
            self.full_until_s = time.monotonic() + _FULL_S
        else:
            self.found(str(error))

    def found(self, fault: str) -> None:
        """What the last question for its health, or the last request, has found."""
        if bool(fault) != bool(self.fault):
            _log.log(
                logging.WARNING if fault else logging.INFO,
                "server left" if fault else "server used again",
                extra={"server": self.address, "reason": fault},
            )
        self.fault = fault
        self._ready.set(not fault)

    async def watch(self) -> None:
        """Ask for its health, for ever."""
        while True:
            self.found((await self.client.health()).reason)
            await asyncio.sleep(_CHECK_INTERVAL_S)


class Upstreams:
    """Servers with the same checkpoint, so that any of them can go on with any conversation."""

    def __init__(self, addresses: Sequence[str], metrics: Metrics, tls: Tls | None = None) -> None:
        self._all = [Upstream(Connection(address, tls=tls), metrics) for address in addresses]
        self._sent_again = metrics.sent_again
        self._watches: list[asyncio.Task[None]] = []

    @property
    def total(self) -> int:
        return len(self._all)

    @property
    def ready(self) -> int:
        """How many are used."""
        return sum(not upstream.fault for upstream in self._all)

    @asynccontextmanager
    async def client(self, before: AsyncClient | None = None) -> AsyncIterator[AsyncClient]:
        """The client of the least loaded server, for one request or one turn; it stays open.

        An error of the server that leaves this block decides whether the next requests go to it.

        Args:
            before: taken again if its server can: it still has what a conversation said so far.

        Raises:
            ServerUnavailable: no server is ready.
        """
        chosen = self._choose(before)
        if before is not None and chosen.client is not before:
            _log.info("conversation on another server", extra={"server": chosen.address})
        async with self._use(chosen) as client:
            yield client

    async def events(self, ask: Ask, timeout_s: float) -> AsyncGenerator[Event, None]:
        """The events of an answer. A server that is lost, or refuses, before the first of them is replaced, once.

        Args:
            timeout_s: for the whole answer, whoever gives it.

        Raises:
            VitaError: of the last server that was asked.
        """
        end_s, upstream, spare = time.monotonic() + timeout_s, self._choose(None), True
        while True:
            begun = False
            try:
                async with (
                    self._use(upstream) as client,
                    ask(client, max(_LEAST_TIMEOUT_S, end_s - time.monotonic())) as answer,
                ):
                    async for event in answer:
                        begun = True
                        yield event
                return
            except ServerUnavailable:
                other = self._another(upstream)
                if begun or not spare or other is None:
                    raise
            self._sent_again.labels(upstream.address).inc()
            _log.info("request sent again", extra={"server": other.address})
            upstream, spare = other, False

    @asynccontextmanager
    async def _use(self, chosen: Upstream) -> AsyncIterator[AsyncClient]:
        chosen.use(1)
        try:
            yield chosen.client
        except ServerUnavailable as error:
            chosen.failed(error)
            raise
        finally:
            chosen.use(-1)

    def _choose(self, before: AsyncClient | None) -> Upstream:
        usable = [upstream for upstream in self._all if not upstream.fault]
        if not usable:
            raise ServerUnavailable(f"none of {self.total} servers is ready: {self._all[0].fault}")
        now_s = time.monotonic()
        usable = [upstream for upstream in usable if upstream.full_until_s <= now_s] or usable
        for upstream in usable:
            if upstream.client is before:
                return upstream
        return min(usable, key=_load)

    def _another(self, lost: Upstream) -> Upstream | None:
        """The least loaded that is ready and not full; None if there is none but `lost`."""
        now_s = time.monotonic()
        others = [each for each in self._all if each is not lost and not each.fault and each.full_until_s <= now_s]
        return min(others, key=_load, default=None)

    def open(self) -> None:
        """Begin to ask for health; in the loop that uses the clients."""
        self._watches = [asyncio.create_task(upstream.watch()) for upstream in self._all]

    async def close(self) -> None:
        for watch in self._watches:
            watch.cancel()
        for watch in self._watches:
            with suppress(asyncio.CancelledError):
                await watch
        for upstream in self._all:
            await upstream.client.close()


def _load(upstream: Upstream) -> tuple[int, int]:
    return upstream.running, upstream.served
