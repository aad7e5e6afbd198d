"""The servers behind a gateway: a client for each, health-checked; a request goes to the least loaded."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from vita_client import AsyncClient


class Upstream:
    """One server: its client, and how many requests and conversations use it."""

    def __init__(self, address: str) -> None:
        self.address, self.client, self.running = address, AsyncClient(address), 0


class Upstreams:
    """Servers with the same checkpoint, so that any of them can go on with any conversation."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._all = [Upstream(address) for address in addresses]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[AsyncClient]:
        """The client of the least loaded server, for one request or one turn; it stays open."""
        chosen = min(self._all, key=lambda upstream: upstream.running)
        chosen.running += 1
        try:
            yield chosen.client
        finally:
            chosen.running -= 1

    async def close(self) -> None:
        for upstream in self._all:
            await upstream.client.close()
