"""The servers behind a gateway: a client for each, health-checked; a request goes to the least loaded."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Any

from gateway.metrics import Metrics
from vita_client import AsyncClient, Connection, Event, ServerUnavailable, Tls
from vita_client.address import split_address

_CHECK_INTERVAL_S = 1.0
#: How long a server that said it is full comes last.
_FULL_S = 1.0
_LEAST_TIMEOUT_S = 0.1
#: How often the addresses of a name are asked for.
_RESOLVE_INTERVAL_S = 5.0
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
            try:
                fault = (await self.client.health()).reason
            except Exception as error:  # noqa: BLE001 - whatever it is, the server is asked again
                fault = f"its health cannot be asked for: {type(error).__name__}: {error}"
            self.found(fault)
            await asyncio.sleep(_CHECK_INTERVAL_S)


class Upstreams:
    """Servers with the same checkpoint, so that any of them can go on with any conversation.

    Args:
        names: NAME:PORT whose addresses are servers, too; they may come and go while the gateway runs.
    """

    def __init__(
        self, addresses: Sequence[str], metrics: Metrics, tls: Tls | None = None, names: Sequence[str] = ()
    ) -> None:
        self._metrics, self._tls, self._names = metrics, tls, names
        self._all = [Upstream(Connection(address, tls=tls), metrics) for address in addresses]
        self._named: dict[str, dict[str, Upstream]] = {name: {} for name in names}
        self._leaving: dict[tuple[str, str], Upstream] = {}  # by name and address; something still runs on them
        self._sent_again = metrics.sent_again
        self._tasks: dict[object, asyncio.Task[None]] = {}

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
            reason = self._all[0].fault if self._all else f"{', '.join(self._names)} has no address"
            raise ServerUnavailable(f"none of {self.total} servers is ready: {reason}")
        usable = self._not_full() or usable
        for upstream in usable:
            if upstream.client is before:
                return upstream
        return min(usable, key=_load)

    def _another(self, lost: Upstream) -> Upstream | None:
        """The least loaded that is ready and not full; None if there is none but `lost`."""
        return min((each for each in self._not_full() if each is not lost), key=_load, default=None)

    def _not_full(self) -> list[Upstream]:
        """Those that are ready and have not just said that they are full."""
        now_s = time.monotonic()
        return [upstream for upstream in self._all if not upstream.fault and upstream.full_until_s <= now_s]

    def open(self) -> None:
        """Begin to ask for health, and for addresses; in the loop that uses the clients."""
        for upstream in self._all:
            self._tasks[upstream] = asyncio.create_task(upstream.watch())
        for name in self._names:
            self._tasks[name] = asyncio.create_task(self._follow(name))

    async def close(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for upstream in (*self._all, *self._leaving.values()):
            await upstream.client.close()

    async def _follow(self, name: str) -> None:
        """Ask for the addresses of a name, for ever. Where there is no answer, the servers stay."""
        while True:
            try:
                self._found(name, await _addresses(name))
            except (OSError, UnicodeError) as error:  # the latter of a label that no name may have
                _log.warning("name not found", extra={"server": name, "reason": str(error)})
            except Exception as error:  # noqa: BLE001 - such as a certificate that is just being replaced
                _log.warning("servers of a name not changed", extra={"server": name, "reason": str(error)})
            await asyncio.sleep(_RESOLVE_INTERVAL_S)

    def _found(self, name: str, addresses: set[str]) -> None:
        known = self._named[name]
        new = sorted(addresses - {each.address for each in self._all})
        tls = self._tls and replace(self._tls, server_name=self._tls.server_name or split_address(name)[0])
        made = {  # before anything changes: the files of TLS may be missing
            address: Upstream(Connection(address, tls=tls), self._metrics)
            for address in new
            if (name, address) not in self._leaving
        }
        for address in new:
            if (upstream := made.get(address)) is None:  # it is back, before what runs on it has ended
                upstream = self._leaving.pop((name, address))
                self._tasks.pop(upstream).cancel()
            known[address] = upstream
            self._all.append(upstream)
            self._tasks[upstream] = asyncio.create_task(upstream.watch())
            _log.info("server found", extra={"server": address})
        for address in known.keys() - addresses:
            self._all.remove(upstream := known.pop(address))
            self._leaving[name, address] = upstream
            self._tasks.pop(upstream).cancel()
            self._tasks[upstream] = asyncio.create_task(self._leave(name, upstream))

    async def _leave(self, name: str, upstream: Upstream) -> None:
        """What runs on a server that is no longer named goes on to its end."""
        while upstream.running:
            await asyncio.sleep(_CHECK_INTERVAL_S)
        del self._leaving[name, upstream.address]
        await upstream.client.close()
        if all(each.address != upstream.address for each in (*self._all, *self._leaving.values())):
            self._metrics.forget(upstream.address)
        _log.info("server gone", extra={"server": upstream.address})
        del self._tasks[upstream]


async def _addresses(name: str) -> set[str]:
    """HOST:PORT for each address of NAME:PORT. Raises OSError: there is none, or no answer."""
    host, port = split_address(name)
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {f"[{each[0]}]:{port}" if ":" in str(each[0]) else f"{each[0]}:{port}" for *_, each in found}


def _load(upstream: Upstream) -> tuple[int, int]:
    return upstream.running, upstream.served
