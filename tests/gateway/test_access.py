"""What a key may use: streams at once, minutes by the hour and by the day."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from gateway.access import Access, Caller
from gateway.errors import GatewayError
from gateway.keys import ANYONE, Key, Limits
from gateway.metrics import Metrics

Test = Callable[[Access, "Clock"], Awaitable[None]]


class Clock:
    """Seconds since 1970, as a test sets them."""

    def __init__(self) -> None:
        self.now_s = 86_400.0 * 1000

    def __call__(self) -> float:
        return self.now_s


def run(test: Test) -> Metrics:
    metrics, clock = Metrics(), Clock()
    asyncio.run(test(Access(metrics, clock), clock))  # type: ignore[arg-type]
    return metrics


def caller(name: str = "page", **limits: Any) -> Caller:
    return Caller(Key(name, b"", Limits(**limits)), "/v1/x")


def test_a_key_has_so_many_streams_and_another_key_its_own() -> None:
    async def test(access: Access, clock: Clock) -> None:
        async with access.stream(caller(streams=2)), access.stream(caller(streams=2)):
            with pytest.raises(GatewayError, match="2 streams running and may have 2") as refused:
                await access.stream(caller(streams=2)).__aenter__()
            assert refused.value.code == "rate_limit_exceeded"
            async with access.stream(caller("phone", streams=2)):
                pass
        async with access.stream(caller(streams=2)):
            pass

    run(test)


def test_the_place_of_a_stream_that_failed_is_free() -> None:
    async def test(access: Access, clock: Clock) -> None:
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with access.stream(caller(streams=1)):
                    raise ZeroDivisionError

    metrics = run(test)
    assert metrics.registry.get_sample_value("vita_gateway_streams_running", {"route": "/v1/x"}) == 0


@pytest.mark.parametrize(("limit", "length_s"), [("minutes_per_hour", 3600), ("minutes_per_day", 86_400)])
def test_minutes_are_used_up_until_the_next_hour_or_day(limit: str, length_s: int) -> None:
    one: dict[str, Any] = {limit: 1}

    async def test(access: Access, clock: Clock) -> None:
        async with access.stream(caller(**one)) as use:
            use.sound(59)
            use.check()
            use.sound(1)
            with pytest.raises(GatewayError) as refused:
                use.check()
        clock.now_s += length_s - 10
        with pytest.raises(GatewayError) as refused:
            await access.stream(caller(**one)).__aenter__()
        assert (refused.value.code, refused.value.retry_after_s) == ("insufficient_quota", 11)
        clock.now_s += 10
        async with access.stream(caller(**one)) as use:
            use.check()

    run(test)


def test_without_keys_there_are_no_limits() -> None:
    async def test(access: Access, clock: Clock) -> None:
        async with access.stream(Caller(ANYONE, "/v1/x")) as use:
            use.sound(1e6)
            use.check()

    run(test)


def test_the_first_sound_of_each_answer_is_measured_once() -> None:
    async def test(access: Access, clock: Clock) -> None:
        async with access.stream(caller()) as use:
            use.sound(1)
            use.sound(1)
            use.check()
            use.sound(1)

    registry = run(test).registry
    assert registry.get_sample_value("vita_gateway_first_sound_seconds_count", {"route": "/v1/x"}) == 2
    assert registry.get_sample_value("vita_gateway_sound_seconds_total", {"key": "page"}) == 3
