"""Who is let in: keys, pages, host names, sizes, times, and how many at once."""

from __future__ import annotations

import asyncio
import functools
import socket
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.types import Message, Receive, Scope, Send
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from cancellation import assert_never_lost
from client_protocol_double import ProtocolDouble
from gateway.app import create_app
from gateway.context import Gateway
from gateway.guard import ALWAYS, KEPT, Guard
from gateway.keys import Limits, add_key
from gateway.settings import Settings
from gateway_routes import router
from gateway_runs import running, served
from waiting import until

PAGE = "https://page.example"


@pytest.fixture
def url(double: ProtocolDouble) -> Iterator[str]:
    """Without keys."""
    with served(Settings(servers=(double.url,)), router) as url:
        yield url


@pytest.fixture
def keyed(double: ProtocolDouble, tmp_path: Path) -> Iterator[tuple[str, str]]:
    """With keys: its address, and a key that has one stream at once."""
    key = add_key(tmp_path / "keys", "page", Limits(streams=1))
    with served(Settings(servers=(double.url,), keys=tmp_path / "keys"), router) as url:
        yield url, key


def code_of(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["error"]["code"]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# ---- keys


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer vita-x"}, {"Authorization": "Basic eDp5"}])
def test_without_a_valid_key_nothing_is_read(keyed: tuple[str, str], headers: dict[str, str]) -> None:
    answer = httpx.post(f"{keyed[0]}/v1/count", content=bytes(1000), headers=headers)
    assert code_of(answer) == (401, "invalid_api_key")
    assert answer.headers["connection"] == "close"
    assert "vita-x" not in answer.text


def test_a_valid_key(keyed: tuple[str, str]) -> None:
    url, key = keyed
    assert httpx.post(f"{url}/v1/count", content=bytes(1000), headers=bearer(key)).json() == 1000


def test_paths_that_need_a_key(keyed: tuple[str, str]) -> None:
    for path in ("/v1/speak", "/v1/nothing", "/v1", "/metrics", "//v1/speak", "/%76%31/speak"):
        assert httpx.get(keyed[0] + path).status_code in (401, 404), path
    for path in ("/v1/speak", "/metrics"):
        assert httpx.get(keyed[0] + path).status_code == 401, path
    for path in ("/health/live", "/health/ready", "/openapi.json"):
        assert httpx.get(keyed[0] + path).status_code == 200, path


def test_every_route_that_generates_is_among_those(double: ProtocolDouble) -> None:
    paths = set(create_app(Settings(servers=(double.url,))).openapi()["paths"])
    assert {path for path in paths if not path.startswith((*KEPT, *ALWAYS))} <= {"/"}


def test_a_websocket_sends_its_key_as_a_header_or_as_a_subprotocol(keyed: tuple[str, str]) -> None:
    address, key = keyed[0].replace("http", "ws") + "/v1/talk", keyed[1]
    with connect(address, additional_headers=bearer(key)) as talk:
        talk.send("a")
        assert talk.recv(5) == "a"
    protocols = [Subprotocol("realtime"), Subprotocol(f"openai-insecure-api-key.{key}")]
    until(lambda: _connects(address, protocols), 5)
    for headers in ({}, bearer("vita-x")):
        with pytest.raises(InvalidStatus) as refused:
            connect(address, additional_headers=headers)
        assert refused.value.response.status_code == 401


def _connects(address: str, protocols: list[Subprotocol]) -> bool:
    """Once the place of the last connection is free."""
    try:
        with connect(address, subprotocols=protocols) as talk:
            return talk.subprotocol == "realtime"
    except InvalidStatus:
        return False


def test_a_key_with_all_its_streams_running_gets_429(keyed: tuple[str, str]) -> None:
    url, key = keyed
    with httpx.stream("GET", f"{url}/v1/endless", headers=bearer(key)) as endless:
        sound = endless.iter_raw()
        next(sound)
        answer = httpx.post(f"{url}/v1/speak", json={"text": "chunks 1"}, headers=bearer(key))
        assert code_of(answer) == (429, "rate_limit_exceeded")
        assert answer.headers["retry-after"] == "1"
    speak = lambda: httpx.post(f"{url}/v1/speak", json={"text": "chunks 1"}, headers=bearer(key))  # noqa: E731
    until(lambda: speak().status_code == 200, 5)


# ---- pages and names


def test_pages_elsewhere_may_not_use_it(url: str) -> None:
    for origin in (PAGE, "null", "http://[", f"{url}.example", "http://127.0.0.1:1"):
        assert code_of(httpx.post(f"{url}/v1/count", headers={"Origin": origin})) == (403, "origin_not_allowed")
        with pytest.raises(InvalidStatus) as refused:
            connect(url.replace("http", "ws") + "/v1/talk", origin=origin)  # type: ignore[call-overload]
        assert refused.value.response.status_code == 403
    answer = httpx.options(f"{url}/v1/count", headers={"Origin": PAGE, "Access-Control-Request-Method": "POST"})
    assert not any(name.startswith("access-control") for name in answer.headers)


def test_its_own_page_may(url: str) -> None:
    assert httpx.post(f"{url}/v1/count", headers={"Origin": url}).json() == 0
    with connect(url.replace("http", "ws") + "/v1/talk", origin=url):  # type: ignore[call-overload]
        pass


def test_pages_of_the_settings_may(double: ProtocolDouble) -> None:
    with served(Settings(servers=(double.url,), origins=(PAGE,)), router) as url:
        names = "authorization,content-type,x-stainless-arch,x-stainless-os"  # as OpenAI's own SDK sends them
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": names}
        answer = httpx.options(f"{url}/v1/count", headers={"Origin": PAGE, **asks})
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (200, PAGE)
        assert "access-control-allow-credentials" not in answer.headers
        answer = httpx.post(f"{url}/v1/count", headers={"Origin": PAGE})
        assert (answer.json(), answer.headers["access-control-allow-origin"]) == (0, PAGE)
        answer = httpx.post(f"{url}/v1/count", headers={"Origin": "https://other.example"})
        assert code_of(answer) == (403, "origin_not_allowed")
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost:1", 200),
        ("127.0.0.1", 200),
        ("[::1]:80", 200),
        ("10.0.0.5:8080", 200),
        ("voice.localhost", 200),
        ("gateway:8080", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("[", 403),
    ],
)
def test_without_keys_a_name_that_a_page_can_take_is_refused(double: ProtocolDouble, host: str, status: int) -> None:
    """DNS rebinding: such a page is of the gateway's own origin."""
    with served(Settings(servers=(double.url,), host_names=("gateway",)), router) as url:
        answer = httpx.post(f"{url}/v1/count", headers={"Host": host, "Origin": f"http://{host}"})
        assert answer.status_code == status
        assert httpx.get(f"{url}/health/live", headers={"Host": host}).status_code == 200


# ---- bounds


def test_bodies_have_a_largest_size(double: ProtocolDouble) -> None:
    with served(Settings(servers=(double.url,), max_body_bytes=1000), router) as url:

        def pieces(count: int) -> Iterator[bytes]:
            yield from (bytes(100) for _ in range(count))

        assert httpx.post(f"{url}/v1/count", content=bytes(1000)).json() == 1000
        assert httpx.post(f"{url}/v1/count", content=pieces(10)).json() == 1000
        for content in (bytes(1001), pieces(11)):
            answer = httpx.post(f"{url}/v1/count", content=content)
            assert code_of(answer) == (413, "body_too_large")
            assert answer.headers["connection"] == "close"
        answer = httpx.post(f"{url}/v1/speak", content=pieces(11), headers={"content-type": "application/json"})
        assert code_of(answer) == (413, "body_too_large")


def test_a_body_that_does_not_come(double: ProtocolDouble) -> None:
    with served(Settings(servers=(double.url,), body_timeout_s=0.3), router) as url:
        head = (
            b"POST /v1/speak HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n"
        )
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), 20) as slow:
            slow.sendall(head + b"{")
            answer = slow.recv(10_000)
            while more := slow.recv(10_000):
                answer += more
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert b'"code":"request_timeout"' in answer


def test_a_full_gateway_refuses_and_stays_healthy(double: ProtocolDouble) -> None:
    with running(Settings(servers=(double.url,), max_requests=2), router) as server:
        url = f"http://127.0.0.1:{server.port}"
        with connect(f"ws://127.0.0.1:{server.port}/v1/talk"), connect(f"ws://127.0.0.1:{server.port}/v1/talk"):
            answer = httpx.post(f"{url}/v1/count")
            assert code_of(answer) == (503, "server_full")
            assert answer.headers["retry-after"] == "1"
            with pytest.raises(InvalidStatus) as refused:
                connect(f"ws://127.0.0.1:{server.port}/v1/talk")
            assert refused.value.response.status_code == 503
            assert httpx.get(f"{url}/health/ready").status_code == 200
            assert httpx.get(f"{url}/metrics").status_code == 200
        until(lambda: httpx.post(f"{url}/v1/count").status_code == 200, 5)


def test_many_at_once_are_all_answered(url: str) -> None:
    async def ask() -> list[httpx.Response]:
        async with httpx.AsyncClient(timeout=30) as client:
            return await asyncio.gather(*(client.post(f"{url}/v1/speak", json={"text": "chunks 2"}) for _ in range(40)))

    began_s = time.monotonic()
    assert {answer.status_code for answer in asyncio.run(ask())} == {200}
    assert time.monotonic() - began_s < 60


def test_a_cancellation_is_not_lost_while_a_body_is_read() -> None:
    """As when a client leaves, or the gateway ends, at the moment at which the body comes."""
    scope = {"type": "http", "path": "/", "headers": []}

    async def read() -> None:
        gateway = Gateway(Settings())

        def begin() -> tuple[Coroutine[Any, Any, None], Callable[[], None]]:
            messages = asyncio.Queue[dict[str, Any]]()

            async def app(scope: Scope, receive: Receive, send: Send) -> None:
                await receive()

            async def send(message: Message) -> None:
                raise AssertionError("nothing is answered")

            complete = functools.partial(messages.put_nowait, {"type": "http.request", "body": b"x"})
            return Guard(app, gateway)(dict(scope), messages.get, send), complete

        await assert_never_lost(begin)
        await gateway.upstreams.close()

    asyncio.run(read())
