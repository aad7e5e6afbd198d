"""Sound that is sent: a small file may hold hours of it, and no caller may have more decoded than it may send."""

from __future__ import annotations

import base64
import io
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile

from client_protocol_double import ProtocolDouble
from gateway.http import chat_turns
from gateway.http.chat_request import ChatRequest
from gateway.http.chat_turns import question_of
from gateway.keys import Limits, new_key
from gateway.settings import Settings
from gateway.sound.decode import decode
from gateway.voices import MODEL
from gateway_runs import served
from vita_audio.contract.errors import InvalidRequest


def flac(seconds: float, rate_hz: int = 16_000, channels: int = 1) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((int(seconds * rate_hz), channels), np.int16), rate_hz, format="FLAC")
    return buffer.getvalue()


def spoken(*files: bytes) -> dict[str, Any]:
    sounds = [{"data": base64.b64encode(file).decode(), "format": "flac"} for file in files]
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": sound} for sound in sounds]}


def test_clips_are_decoded_until_they_are_too_long_together(monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[float] = []

    def counted(file: bytes, *rest: Any) -> np.ndarray:
        decoded.append(rest[-1])
        return decode(file, *rest)

    monkeypatch.setattr(chat_turns, "decode", counted)
    asked = ChatRequest.model_validate({"model": MODEL, "messages": [spoken(*[flac(50)] * 12)]})
    with pytest.raises(InvalidRequest, match="at most 120 s are taken") as refused:
        question_of(asked, lambda answer_id: None)
    assert refused.value.field == "input_audio"
    assert decoded == [120, 70, 20]
    asked = ChatRequest.model_validate({"model": MODEL, "messages": [spoken(*[flac(60)] * 2)]})
    assert len(question_of(asked, lambda answer_id: None).fields["audio"]) == 120 * 16_000  # type: ignore[arg-type]


def test_a_small_file_of_much_sound_takes_little_memory() -> None:
    """10 s of 8 channels at 192 kHz are 61 MB, of 7 KB: what is held of it is what it has at 16 kHz."""
    file = flac(10, 192_000, 8)
    tracemalloc.start()
    try:
        assert len(decode(file, "file")) == 160_000
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 10 * 192_000 * 8 * 4 / 2


@pytest.mark.parametrize(
    ("rate_hz", "channels", "words"),
    [(4_000, 1, "8000 to 192000"), (200_000, 1, "8000 to 192000"), (16_000, 9, "at most 8 are read")],
)
def test_rates_and_channels_that_are_not_taken(rate_hz: int, channels: int, words: str) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros((rate_hz, channels), np.int16), rate_hz, format="WAV")
    with pytest.raises(InvalidRequest, match=words) as refused:
        decode(buffer.getvalue(), "file")
    assert refused.value.field == "file"


@pytest.fixture
def limited(double: ProtocolDouble, tmp_path: Path) -> Iterator[httpx.Client]:
    """A caller whose key has used its minutes."""
    key, line = new_key("page", Limits(minutes_per_day=0.001))
    file = tmp_path / "keys"
    file.write_text(line + "\n")
    file.chmod(0o600)
    with (
        served(Settings(servers=(double.url,), keys=file)) as url,
        httpx.Client(base_url=f"{url}/v1", headers={"Authorization": f"Bearer {key}"}, timeout=30) as client,
    ):
        client.post("/audio/speech", json={"model": MODEL, "input": "chunks 2", "voice": "alloy"}).raise_for_status()
        yield client


@pytest.mark.parametrize("stream", [False, True])
def test_nothing_is_decoded_for_a_key_that_is_used_up(limited: httpx.Client, stream: bool) -> None:
    message = spoken(b"this is no sound")
    chat = limited.post("/chat/completions", json={"model": MODEL, "messages": [message], "stream": stream})
    words = limited.post("/audio/transcriptions", data={"model": MODEL, "stream": stream}, files={"file": b"no sound"})
    for answer in (chat, words):
        assert (answer.status_code, answer.json()["error"]["code"]) == (429, "insufficient_quota")
