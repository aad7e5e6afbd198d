"""`--request-timeout-s` is of a whole answer: of all sentences of a text, and of what a Realtime session asks for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect

from client_protocol_double import ProtocolDouble
from gateway.settings import Settings
from gateway.voices import MODEL
from gateway_runs import served


@pytest.fixture
def url(double: ProtocolDouble) -> Iterator[str]:
    with served(Settings(servers=(double.url,), request_timeout_s=1.5)) as url:
        yield url


def test_of_a_text_read_aloud(url: str, double: ProtocolDouble) -> None:
    double.otherwise = "chunks 5 0.1"
    text = " ".join("This is a sentence" + " of many words" * 20 + "." for _ in range(10))
    began_s = time.monotonic()
    fields = {"model": MODEL, "input": text, "response_format": "pcm", "stream_format": "sse"}
    answer = httpx.post(f"{url}/v1/audio/speech", json=fields, timeout=30)
    assert "deadline_exceeded" in answer.text.splitlines()[-2]
    assert time.monotonic() - began_s < 4
    assert double.deadlines_s[0] == pytest.approx(1.5, abs=0.3)
    assert double.deadlines_s[-1] < 1, "a later sentence has what is left"


def test_of_responses_and_transcriptions_of_a_session(url: str, double: ProtocolDouble) -> None:
    async def talk() -> None:
        async with connect(f"{url.replace('http', 'ws')}/v1/realtime?model={MODEL}") as socket:

            async def until(kind: str) -> dict[str, Any]:
                while (event := json.loads(await asyncio.wait_for(socket.recv(), 20)))["type"] != kind:
                    pass
                return dict(event)

            content = [{"type": "input_text", "text": "hang"}]
            item = {"type": "message", "role": "user", "content": content}
            await socket.send(json.dumps({"type": "conversation.item.create", "item": item}))
            for response in ({}, {"conversation": "none"}):
                await socket.send(json.dumps({"type": "response.create", "response": response}))
                failed = (await until("response.done"))["response"]
                assert failed["status_details"]["error"]["code"] == "deadline_exceeded"
            double.spoken = "hang"
            audio = {"input": {"transcription": {}, "turn_detection": None}}
            await socket.send(json.dumps({"type": "session.update", "session": {"type": "realtime", "audio": audio}}))
            await socket.send(json.dumps({"type": "input_audio_buffer.append", "audio": "AAAA" * 4000}))
            await socket.send(json.dumps({"type": "input_audio_buffer.commit"}))
            failed = await until("conversation.item.input_audio_transcription.failed")
            assert failed["error"]["code"] == "deadline_exceeded"

    asyncio.run(talk())
