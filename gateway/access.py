"""How much each key may use at once, by the hour and by the day. Counted in memory: a restart begins at zero."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from gateway.errors import GatewayError
from gateway.keys import Key, Limits
from gateway.metrics import Metrics

_HOUR_S, _DAY_S = 3600, 86_400


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks, and for what: the path of a route, as metrics name it."""

    key: Key
    route: str


class _Used:
    """Of one key: streams at this moment, and the sound of the hour and the day (UTC) that began last."""

    def __init__(self) -> None:
        self.streams = 0
        self._windows: dict[int, tuple[int, float]] = {}

    def add(self, seconds: float, now_s: float) -> None:
        for length_s in (_HOUR_S, _DAY_S):
            self._windows[length_s] = (int(now_s // length_s), self.seconds(length_s, now_s) + seconds)

    def seconds(self, length_s: int, now_s: float) -> float:
        """Of sound, in the window of this length that `now_s` is in."""
        index, seconds = self._windows.get(length_s, (0, 0.0))
        return seconds if index == int(now_s // length_s) else 0.0


class Use:
    """What one request or conversation uses of its key's limits."""

    def __init__(self, used: _Used, caller: Caller, metrics: Metrics, clock: Callable[[], float]) -> None:
        self._used, self._caller, self._metrics, self._clock = used, caller, metrics, clock
        self._began_s: float | None = time.monotonic()

    def sound(self, seconds: float) -> None:
        """So much sound was made for it. The first one of an answer is its time to first sound."""
        if self._began_s is not None:
            self._metrics.first_sound.labels(self._caller.route).observe(time.monotonic() - self._began_s)
            self._began_s = None
        self._metrics.sound.labels(self._caller.key.name).inc(seconds)
        self._used.add(seconds, self._clock())

    def check(self) -> None:
        """An answer of a conversation begins.

        Raises:
            GatewayError: the key's minutes are used up.
        """
        _check_minutes(self._used, self._caller.key.limits, self._clock())
        self._began_s = time.monotonic()


class Access:
    """What is used of the limits of all keys."""

    def __init__(self, metrics: Metrics, clock: Callable[[], float] = time.time) -> None:
        self._metrics, self._clock = metrics, clock
        self._used: dict[str, _Used] = {}

    @asynccontextmanager
    async def stream(self, caller: Caller) -> AsyncIterator[Use]:
        """A place for one HTTP request that generates, or for one conversation (a WebSocket).

        Raises:
            GatewayError: the key has as many streams as it may, or its minutes are used up.
        """
        used, limits = self._used.setdefault(caller.key.name, _Used()), caller.key.limits
        if limits.streams is not None and used.streams >= limits.streams:
            raise GatewayError(
                f"this API key has {used.streams} streams running and may have {limits.streams}; end one, or wait",
                code="rate_limit_exceeded",
            )
        _check_minutes(used, limits, self._clock())
        running = self._metrics.streams.labels(caller.route)
        used.streams += 1
        running.inc()
        try:
            yield Use(used, caller, self._metrics, self._clock)
        finally:
            running.dec()
            used.streams -= 1


def _check_minutes(used: _Used, limits: Limits, now_s: float) -> None:
    for length_s, minutes, name in (
        (_HOUR_S, limits.minutes_per_hour, "hour"),
        (_DAY_S, limits.minutes_per_day, "day"),
    ):
        if minutes is not None and used.seconds(length_s, now_s) >= 60 * minutes:
            raise GatewayError(
                f"this API key has used its {minutes:g} minutes of sound of this {name} (UTC)",
                code="insufficient_quota",
                retry_after_s=int(length_s - now_s % length_s) + 1,
            )
