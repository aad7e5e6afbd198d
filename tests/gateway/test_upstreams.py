"""Several servers: the least loaded is taken, one that died is left, and tried again when it is back."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest

from certificates import make_certificate
from client_protocol_double import ProtocolDouble
from gateway import upstreams as upstreams_module
from gateway.metrics import Metrics
from gateway.settings import Settings
from gateway.upstreams import Upstreams
from gateway_routes import router
from gateway_runs import served
from vita_client import AsyncClient, ServerUnavailable, Tls
from vita_client.errors import ClientClosed
from waiting import until

Test = Callable[[Upstreams], Awaitable[None]]


@pytest.fixture
def pair(double: ProtocolDouble) -> Iterator[tuple[ProtocolDouble, ProtocolDouble]]:
    other = ProtocolDouble()
    yield double, other
    other.close()


def run(addresses: tuple[str, ...], test: Test, watch: bool = False) -> Metrics:
    metrics = Metrics()

    async def inside() -> None:
        upstreams = Upstreams(addresses, metrics)
        if watch:
            upstreams.open()
        try:
            await asyncio.wait_for(test(upstreams), 60)
        finally:
            await upstreams.close()

    asyncio.run(inside())
    return metrics


def address(client: AsyncClient) -> str:
    return client.connection.url


A, B = "localhost:1", "localhost:2"


def test_the_least_loaded_is_taken_and_all_have_their_turn() -> None:
    async def test(upstreams: Upstreams) -> None:
        async with upstreams.client() as first, upstreams.client() as second, upstreams.client() as third:
            assert [address(client) for client in (first, second, third)] == [A, B, A]
            async with upstreams.client() as fourth:
                assert address(fourth) == B
        taken = []
        for _ in range(4):
            async with upstreams.client() as client:
                taken.append(address(client))
        assert taken.count(A) == taken.count(B) == 2

    run((A, B), test)


def test_a_conversation_stays_where_it_was_while_that_server_can() -> None:
    async def test(upstreams: Upstreams) -> None:
        async with upstreams.client() as before:
            pass
        for _ in range(3):
            async with upstreams.client(before) as client:
                assert client is before
        with pytest.raises(ServerUnavailable):
            async with upstreams.client(before):
                raise ServerUnavailable("full", code="server_full")
        async with upstreams.client(before) as client:
            assert client is not before

    run((A, B), test)


@pytest.mark.parametrize("code", ["unavailable", "shutting_down", "unhealthy", "not_ready"])
def test_a_server_that_failed_is_left(code: str) -> None:
    async def test(upstreams: Upstreams) -> None:
        with pytest.raises(ServerUnavailable):
            async with upstreams.client():
                raise ServerUnavailable("gone", code=code)
        assert (upstreams.ready, upstreams.total) == (1, 2)
        for _ in range(3):
            async with upstreams.client() as client:
                assert address(client) == B
        with pytest.raises(ServerUnavailable):
            async with upstreams.client():
                raise ServerUnavailable("gone", code=code)
        with pytest.raises(ServerUnavailable, match="none of 2 servers is ready: gone") as none:
            await upstreams.client().__aenter__()
        assert none.value.code == "unavailable"

    metrics = run((A, B), test)
    for server in (A, B):
        assert metrics.registry.get_sample_value("vita_gateway_server_ready", {"server": server}) == 0
        assert metrics.registry.get_sample_value("vita_gateway_server_streams_running", {"server": server}) == 0


def test_full_servers_are_still_asked_when_all_are_full() -> None:
    async def test(upstreams: Upstreams) -> None:
        for _ in range(2):
            with pytest.raises(ServerUnavailable):
                async with upstreams.client():
                    raise ServerUnavailable("full", code="server_full")
        async with upstreams.client():
            assert upstreams.ready == 2

    run((A, B), test)


def test_what_is_wrong_with_a_request_says_nothing_about_the_server() -> None:
    async def test(upstreams: Upstreams) -> None:
        with pytest.raises(ValueError, match="x"):
            async with upstreams.client():
                raise ValueError("x")
        assert upstreams.ready == 1

    run((A,), test)


def test_health_decides_who_is_asked(pair: tuple[ProtocolDouble, ProtocolDouble]) -> None:
    first, second = pair

    async def becomes(upstreams: Upstreams, ready: int) -> None:
        while upstreams.ready != ready:
            await asyncio.sleep(0.01)

    async def test(upstreams: Upstreams) -> None:
        first.model_ready = False
        await becomes(upstreams, 1)
        async with upstreams.client() as client:
            assert address(client) == second.url
        second.ready = False
        await becomes(upstreams, 0)
        first.model_ready = True
        await becomes(upstreams, 1)
        async with upstreams.client() as client:
            assert address(client) == first.url

    run((first.url, second.url), test, watch=True)


def test_one_of_two_servers_dies_under_load_and_another_comes_back_at_its_address(
    pair: tuple[ProtocolDouble, ProtocolDouble],
) -> None:
    first, second = pair
    with served(Settings(servers=(first.url, second.url)), router) as url, httpx.Client(timeout=30) as client:

        def speak(text: str = "chunks 2") -> httpx.Response:
            return client.post(f"{url}/v1/speak", json={"text": text})

        sound = np.concatenate([np.full(2205, index, "<i2") for index in range(2)]).tobytes()
        with ThreadPoolExecutor(4) as callers:
            running = [callers.submit(speak, "chunks 20 0.05") for _ in range(4)]
            until(lambda: len(first.inputs) >= 2 and len(second.inputs) >= 2)
            first.close()
            statuses = sorted(each.result().status_code for each in running)
            # Those of the server that died, and no other; one that had no event yet is sent to the other server.
            assert statuses[:2] == [200, 200]
            assert set(statuses) <= {200, 502, 503}
        answers = [speak() for _ in range(20)]
        assert sum(answer.status_code == 200 for answer in answers) >= 19
        assert all(answer.content == sound for answer in answers if answer.status_code == 200)
        until(lambda: client.get(f"{url}/health/ready").json()["servers_ready"] == 1)

        back = ProtocolDouble(port=first.port)
        try:
            until(lambda: client.get(f"{url}/health/ready").json()["servers_ready"] == 2)
            until(lambda: speak().status_code == 200 and back.inputs)
        finally:
            back.close()


def test_servers_of_a_name_come_and_go(double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """What runs on one that goes is completed, and the name's other servers take what comes."""
    other = ProtocolDouble(host="127.0.0.2", port=double.port)
    name, hosts = f"voice:{double.port}", ["127.0.0.1"]

    async def addresses(asked: str) -> set[str]:
        assert asked == name
        if not hosts:
            raise OSError("no such name")
        return {f"{host}:{double.port}" for host in hosts}

    monkeypatch.setattr(upstreams_module, "_addresses", addresses)
    monkeypatch.setattr(upstreams_module, "_RESOLVE_INTERVAL_S", 0.05)
    monkeypatch.setattr(upstreams_module, "_CHECK_INTERVAL_S", 0.05)

    async def becomes(upstreams: Upstreams, *wanted: str) -> None:
        while sorted(each.address for each in upstreams._all) != sorted(f"{host}:{double.port}" for host in wanted):
            await asyncio.sleep(0.01)

    async def inside() -> None:
        upstreams = Upstreams((), metrics := Metrics(), names=(name,))
        with pytest.raises(ServerUnavailable, match=f"none of 0 servers is ready: {name} has no address"):
            await upstreams.client().__aenter__()
        upstreams.open()
        try:
            await becomes(upstreams, "127.0.0.1")
            async with upstreams.client() as client:
                hosts[:] = ["127.0.0.2"]
                await becomes(upstreams, "127.0.0.2")
                reply = await client.collect("chunks 2", task="tts")
                assert len(reply.pcm) == 4410
                async with upstreams.client() as following:
                    assert address(following) == f"127.0.0.2:{double.port}"
            gone = {"server": f"127.0.0.1:{double.port}"}
            while metrics.registry.get_sample_value("vita_gateway_server_ready", gone) is not None:
                await asyncio.sleep(0.01)
            with pytest.raises(ClientClosed):
                client.stream("chunks 2", task="tts")
            hosts[:] = []  # no answer: the servers stay
            await asyncio.sleep(0.2)
            await becomes(upstreams, "127.0.0.2")
        finally:
            await upstreams.close()

    try:
        asyncio.run(asyncio.wait_for(inside(), 60))
    finally:
        other.close()


def test_a_server_that_is_back_before_its_streams_have_ended_is_the_same(
    double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its figures stay, what runs on it counts, and two names, or its address besides, make it no second server."""
    there = f"127.0.0.1:{double.port}"
    found = {"one:1": {there}, "two:1": {there}}

    async def addresses(asked: str) -> set[str]:
        return found[asked]

    monkeypatch.setattr(upstreams_module, "_addresses", addresses)
    monkeypatch.setattr(upstreams_module, "_RESOLVE_INTERVAL_S", 0.02)

    async def becomes(upstreams: Upstreams, total: int) -> None:
        while upstreams.total != total:
            await asyncio.sleep(0.01)

    async def inside() -> None:
        upstreams = Upstreams((), metrics := Metrics(), names=tuple(found))
        upstreams.open()
        try:
            await becomes(upstreams, 1)
            async with upstreams.client() as client:
                found.update({"one:1": set(), "two:1": set()})
                await becomes(upstreams, 0)
                found["one:1"] = {there}
                await becomes(upstreams, 1)
                async with upstreams.client() as again:
                    assert again is client
                    running = metrics.registry.get_sample_value
                    assert running("vita_gateway_server_streams_running", {"server": there}) == 2
            await asyncio.sleep(0.1)
            assert metrics.registry.get_sample_value("vita_gateway_server_ready", {"server": there}) == 1
            assert (await client.health()).ready
        finally:
            await upstreams.close()
        given = Upstreams((there,), Metrics(), names=("one:1",))
        given.open()
        await asyncio.sleep(0.1)
        assert given.total == 1
        await given.close()

    asyncio.run(asyncio.wait_for(inside(), 60))


def test_what_goes_wrong_once_does_not_end_the_watching(
    double: ProtocolDouble, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of TLS that is just being replaced; a question for health that fails in an unknown way."""
    found, ca = {"127.0.0.1:1"}, tmp_path / "ca.pem"
    certificate = make_certificate(tmp_path, "server").certificate.read_bytes()

    async def addresses(asked: str) -> set[str]:
        return set(found)

    async def no_health(client: AsyncClient) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(upstreams_module, "_addresses", addresses)
    monkeypatch.setattr(upstreams_module, "_RESOLVE_INTERVAL_S", 0.02)
    monkeypatch.setattr(upstreams_module, "_CHECK_INTERVAL_S", 0.02)

    async def becomes(question: Callable[[], int], wanted: int) -> None:
        while question() != wanted:
            await asyncio.sleep(0.01)

    async def inside() -> None:
        upstreams = Upstreams((), Metrics(), tls=Tls(ca), names=("voice:1",))
        upstreams.open()
        await asyncio.sleep(0.1)
        assert upstreams.total == 0
        ca.write_bytes(certificate)
        await becomes(lambda: upstreams.total, 1)
        ca.unlink()
        found.update({"127.0.0.1:2"})
        found.discard("127.0.0.1:1")
        await asyncio.sleep(0.1)
        assert [each.address for each in upstreams._all] == ["127.0.0.1:1"], "nothing changes by halves"
        ca.write_bytes(certificate)
        while [each.address for each in upstreams._all] != ["127.0.0.1:2"]:
            await asyncio.sleep(0.01)
        await upstreams.close()

        upstreams = Upstreams((double.url,), Metrics())
        with monkeypatch.context() as patch:
            patch.setattr(AsyncClient, "health", no_health)
            upstreams.open()
            await becomes(lambda: upstreams.ready, 0)
        await becomes(lambda: upstreams.ready, 1)
        await upstreams.close()

    asyncio.run(asyncio.wait_for(inside(), 60))


def test_the_addresses_of_a_name() -> None:
    assert "127.0.0.1:8001" in asyncio.run(upstreams_module._addresses("localhost:8001"))
    with pytest.raises(OSError, match=r"."):
        asyncio.run(upstreams_module._addresses("no.such.name.invalid:8001"))


def test_with_no_server_left_the_answer_is_503_and_health_says_so(double: ProtocolDouble) -> None:
    double.ready = False
    with served(Settings(servers=(double.url,)), router) as url:
        until(lambda: httpx.get(f"{url}/health/ready").status_code == 503)
        answer = httpx.post(f"{url}/v1/speak", json={"text": "chunks 1"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
        assert answer.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/health/live").status_code == 200
        metrics = httpx.get(f"{url}/metrics").text
        assert f'vita_gateway_server_ready{{server="{double.url}"}} 0.0' in metrics
