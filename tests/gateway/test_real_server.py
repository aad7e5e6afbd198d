"""The gateway over a real Triton server: the same sound as the client's, and what a full server is answered with."""

from __future__ import annotations

import threading
from pathlib import Path

import httpx
import pytest

from gateway.settings import Settings
from gateway_routes import router
from gateway_runs import served
from server.launch import TritonServer
from server.options import ServerOptions
from vita_client import Client
from waiting import until

pytestmark = pytest.mark.server
TEXT = "The happy dog is in the garden."


def speak(url: str) -> httpx.Response:
    return httpx.post(f"{url}/v1/speak", json={"text": TEXT}, timeout=120)


def test_the_sound_is_that_of_the_client(server: TritonServer) -> None:
    with Client(server.grpc_url) as client:
        direct = client.collect(TEXT, task="tts", seed=7)
    with served(Settings(servers=(server.grpc_url,)), router) as url:
        through = httpx.post(f"{url}/v1/speak", json={"text": TEXT, "seed": 7}, timeout=120)
    assert through.status_code == 200
    assert through.content == direct.pcm.tobytes()


def test_a_full_server_is_503_and_says_when_to_come_back(engines: Path) -> None:
    options = ServerOptions(engines=engines, grpc_port=0, metrics_port=0, slots=1, queue=0)
    with (
        TritonServer(options) as server,
        served(Settings(servers=(server.grpc_url,)), router) as url,
        Client(server.grpc_url) as client,
    ):
        with client.stream("Tell me a long story.", max_tokens=1000) as running:
            next(running)
            answers: list[httpx.Response] = []
            callers = [threading.Thread(target=lambda: answers.append(speak(url))) for _ in range(4)]
            for caller in callers:
                caller.start()
            for caller in callers:
                caller.join(120)
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused
        assert {answer.json()["error"]["code"] for answer in refused} == {"server_full"}
        assert {answer.headers["retry-after"] for answer in refused} == {"1"}
        assert {answer.status_code for answer in answers} <= {200, 503}
        until(lambda: speak(url).status_code == 200, 60)
