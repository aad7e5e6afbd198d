"""Who may use the gateway, and how much of it: API keys and their limits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Key:
    """A caller, by the name of its key."""

    name: str


#: Of callers where no keys are asked for.
ANYONE = Key("anyone")


class Use:
    """What one request or conversation uses of its key's limits."""

    def sound(self, seconds: float) -> None:
        """Sound was made for it."""

    def check(self) -> None:
        """Before each answer of a conversation.

        Raises:
            GatewayError: the key's minutes are used up.
        """


class Access:
    """Keys and what is used of their limits."""

    @asynccontextmanager
    async def stream(self, key: Key) -> AsyncIterator[Use]:
        """A place for one HTTP request that generates, or for one conversation (a WebSocket).

        Raises:
            GatewayError: the key has as many streams as it may, or its minutes are used up.
        """
        yield Use()
