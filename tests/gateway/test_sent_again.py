"""A server is lost before its answer begins: another one is asked, once; later, nothing is sent twice."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from client_protocol_double import ProtocolDouble
from gateway.settings import Settings
from gateway_runs import served

GONE, LATER = "abort UNAVAILABLE gone", "one-then-abort UNAVAILABLE gone"
FULL, STOPPING = (f"message-only [vita:{code}] no" for code in ("server_full", "shutting_down"))
QUESTION = Path(__file__).parents[2] / "examples/question.wav"
#: A text that no script of the doubles has: they do what each of them is told.
TEXT = "Read this."


@pytest.fixture
def pair(double: ProtocolDouble) -> Iterator[tuple[ProtocolDouble, ProtocolDouble]]:
    """Two servers; the first one is asked first, the second one answers."""
    other = ProtocolDouble()
    other.spoken = other.otherwise = "chunks 3"
    yield double, other
    other.close()


@pytest.fixture
def http(pair: tuple[ProtocolDouble, ProtocolDouble]) -> Iterator[httpx.Client]:
    servers = tuple(each.url for each in pair)
    with served(Settings(servers=servers)) as url, httpx.Client(base_url=url, timeout=60) as client:
        yield client


def speech(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post(
        "/v1/audio/speech", json={"model": "vita-audio", "input": TEXT, "response_format": "pcm", **fields}
    )


def transcription(http: httpx.Client, **fields: Any) -> httpx.Response:
    file = {"file": ("question.wav", QUESTION.read_bytes())}
    return http.post("/v1/audio/transcriptions", files=file, data={"model": "vita-audio", **fields})


def chat(http: httpx.Client, **fields: Any) -> httpx.Response:
    messages = [{"role": "user", "content": TEXT}]
    return http.post("/v1/chat/completions", json={"model": "vita-audio", "messages": messages, **fields})


Call = Callable[..., httpx.Response]
CALLS: list[tuple[Call, dict[str, Any]]] = [
    (speech, {}),
    (speech, {"stream_format": "sse"}),
    (transcription, {}),
    (transcription, {"stream": "true"}),
    (chat, {}),
    (chat, {"stream": True}),
]


@pytest.mark.parametrize("failure", [GONE, FULL, STOPPING])
@pytest.mark.parametrize(("call", "fields"), CALLS)
def test_another_server_answers(
    http: httpx.Client, pair: tuple[ProtocolDouble, ProtocolDouble], call: Call, fields: dict[str, Any], failure: str
) -> None:
    first, second = pair
    first.spoken = first.otherwise = failure
    answer = call(http, **fields)
    assert answer.status_code == 200, answer.text
    assert "error" not in answer.text[:20]
    assert len(answer.content) > 10_000 if call is speech else "s0c2" in answer.text
    assert (len(first.inputs), len(second.inputs)) == (1, 1)
    assert f'vita_gateway_requests_sent_again_total{{server="{first.url}"}} 1.0' in http.get("/metrics").text


@pytest.mark.parametrize(("call", "fields"), CALLS)
def test_nothing_is_sent_twice_once_the_answer_has_begun(
    http: httpx.Client, pair: tuple[ProtocolDouble, ProtocolDouble], call: Call, fields: dict[str, Any]
) -> None:
    first, second = pair
    first.spoken = first.otherwise = LATER
    try:
        answer = call(http, **fields)
    except httpx.RemoteProtocolError:  # the body of a sound file ends without its last chunk
        assert call is speech
        assert not fields
    else:
        assert "stream_broken" in answer.text
    assert (len(first.inputs), len(second.inputs)) == (1, 0)
    assert "vita_gateway_requests_sent_again_total{" not in http.get("/metrics").text


def test_it_is_sent_again_once(http: httpx.Client, pair: tuple[ProtocolDouble, ProtocolDouble]) -> None:
    for each in pair:
        each.otherwise = GONE
    answer = chat(http)
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unavailable")
    assert [len(each.inputs) for each in pair] == [1, 1]


def test_without_another_server_the_error_comes_at_once(double: ProtocolDouble) -> None:
    double.otherwise = FULL
    with served(Settings(servers=(double.url,))) as url, httpx.Client(base_url=url, timeout=60) as http:
        answer = chat(http)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "server_full")
    assert len(double.inputs) == 1


def test_a_wrong_request_is_not_sent_again(http: httpx.Client, pair: tuple[ProtocolDouble, ProtocolDouble]) -> None:
    first, second = pair
    first.otherwise = "message-only [vita:invalid_request] no"
    assert chat(http).status_code == 400
    assert not second.inputs


def test_the_next_response_of_a_conversation_comes_from_another_server_and_the_failed_one_says_so(
    http: httpx.Client, pair: tuple[ProtocolDouble, ProtocolDouble]
) -> None:
    first, second = pair
    first.otherwise = GONE

    async def talk() -> list[dict[str, Any]]:
        done: list[dict[str, Any]] = []
        address = f"{http.base_url}".replace("http", "ws", 1).rstrip("/") + "/v1/realtime?model=vita-audio"
        async with connect(address) as socket:
            item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": TEXT}]}
            await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            for _ in range(2):
                await socket.send(json.dumps({"type": "response.create"}))
                while (event := json.loads(await asyncio.wait_for(socket.recv(), 60)))["type"] != "response.done":
                    assert event["type"] != "error", event
                done.append(event["response"])
        return done

    failed, answered = asyncio.run(talk())
    assert failed["status_details"]["error"]["code"] == "unavailable"
    assert failed["status_details"]["error"]["message"].endswith("; the next response comes from another server")
    assert answered["status"] == "completed"
    assert second.inputs[-1]["TEXT"] == TEXT
