"""Readiness: what the answers of a server mean, and waiting for it, in both clients."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from client_protocol_double import ProtocolDouble
from client_twins import run
from vita_client import AsyncClient, ClientClosed, Connection, Health, ServerUnavailable


@pytest.mark.parametrize(
    ("server", "model", "reason"),
    [
        (True, True, ""),
        (False, True, "the server at URL is not ready"),
        (True, False, "the server at URL has no model vita_audio ready"),
        (False, False, "the server at URL is not ready"),
    ],
)
def test_what_the_answers_mean(double: ProtocolDouble, client: Any, server: bool, model: bool, reason: str) -> None:
    double.ready, double.model_ready = server, model
    health = client.health()
    assert health == Health(server, model, reason.replace("URL", double.url))
    assert health.ready is (server and model)


def test_waiting_ends_when_it_is_ready(double: ProtocolDouble, client: Any) -> None:
    assert client.wait_ready(5).ready
    double.model_ready = False
    double.asked.clear()

    def become_ready() -> None:
        while len(double.asked) < 6:  # server and model, again and again
            time.sleep(0.01)
        double.model_ready = True

    threading.Thread(target=become_ready, daemon=True).start()
    started_s = time.monotonic()
    assert client.wait_ready(30).ready
    assert time.monotonic() - started_s >= 0.2  # with pauses
    assert len(double.asked) >= 8


def test_waiting_ends_with_its_time(double: ProtocolDouble, client: Any) -> None:
    double.ready = False
    started_s = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"^not ready within 0\.4 s: the server at .* is not ready$") as caught:
        client.wait_ready(0.4)
    assert caught.value.code == "not_ready"
    assert 0.4 <= time.monotonic() - started_s < 3
    assert len(double.asked) < 40


def test_a_server_that_does_not_answer_is_not_ready(double: ProtocolDouble, connect: Callable[..., Any]) -> None:
    double.silent = True
    with connect(connection=Connection(double.url, connect_timeout_s=0.5)) as client:
        health = client.health()
    assert (health.server, health.model) == (False, False)
    assert re.fullmatch(rf"no answer from {double.url} in \d\.\d s", health.reason)


@pytest.mark.parametrize("silent", ["server", "model"])
def test_a_server_that_does_not_answer_is_waited_for_no_longer_than_asked(
    double: ProtocolDouble, client: Any, silent: str
) -> None:
    double.silent, double.model_silent = silent == "server", silent == "model"
    started_s = time.monotonic()
    with pytest.raises(ServerUnavailable, match=r"^not ready within 0\.5 s: no answer from localhost:\d+ in 0\.\d s$"):
        client.wait_ready(0.5)
    assert 0.5 <= time.monotonic() - started_s < 2


def test_closing_the_client_ends_a_question(double: ProtocolDouble, connect: Callable[..., Any]) -> None:
    double.silent = True
    client = connect(double.url)
    closing = threading.Timer(0.3, client.close)
    closing.start()
    health = client.health()
    assert (health.ready, "closed" in health.reason) == (False, True)
    closing.join()
    client = connect(double.url)
    closing = threading.Timer(0.3, client.close)
    closing.start()
    with pytest.raises(ClientClosed):
        client.wait_ready(20)
    closing.join()


@pytest.mark.parametrize(
    "closed", [False, pytest.param(True, marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="it cannot tell"))]
)
def test_cancelling_the_task_that_asks_cancels_it(double: ProtocolDouble, closed: bool) -> None:
    double.silent = True

    async def work() -> None:
        client = AsyncClient(double.url)
        task = asyncio.create_task(client.health())
        await asyncio.sleep(0.3)
        task.cancel()
        if closed:
            await client.close()
        with pytest.raises(asyncio.CancelledError):
            await task
        await client.close()

    run(work())


def test_waiting_for_a_server_that_is_not_there_yet(connect: Callable[..., Any]) -> None:
    with connect("localhost:1") as client:
        assert "refused" in client.health().reason
        with pytest.raises(ServerUnavailable, match=r"not ready within 0\.2 s: no answer from localhost:1"):
            client.wait_ready(0.2)
