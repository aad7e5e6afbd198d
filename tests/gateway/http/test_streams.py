"""Callers that leave before their answer begins: the stream on the server ends with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from client_protocol_double import ProtocolDouble
from gateway.voices import MODEL
from waiting import until

QUESTION = (Path(__file__).resolve().parents[3] / "examples" / "question.wav").read_bytes()
CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "hang"}]}
SPEECH = {"model": MODEL, "input": "hang"}
FILE = {"file": ("question.wav", QUESTION)}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("chat/completions", {"json": CHAT}),
        ("chat/completions", {"json": CHAT | {"stream": True}}),
        ("audio/speech", {"json": SPEECH}),
        ("audio/speech", {"json": SPEECH | {"stream_format": "sse"}}),
        ("audio/transcriptions", {"data": {"model": MODEL}, "files": FILE}),
        ("audio/transcriptions", {"data": {"model": MODEL, "stream": "true"}, "files": FILE}),
    ],
)
def test_a_caller_that_leaves_before_the_answer(
    gateway_url: str, double: ProtocolDouble, path: str, body: dict[str, Any]
) -> None:
    double.spoken, double.otherwise = "hang", "hang"
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{gateway_url}/v1/{path}", timeout=httpx.Timeout(10, read=0.3), **body)
    until(lambda: bool(double.inputs) and double.cancelled.is_set() and not double.running)
