"""OpenAI's HTTP interface over the protocol double: shapes, streams, errors. Whole clients: tests/clients."""

from __future__ import annotations

import base64
import io
import json
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from openai.types.audio import TranscriptionVerbose

import client_protocol_double
from client_protocol_double import ProtocolDouble, chunk_text
from gateway.voices import MODEL, OPENAI_VOICES
from waiting import until

QUESTION = (Path(__file__).resolve().parents[3] / "examples" / "question.wav").read_bytes()


@pytest.fixture
def http(gateway_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{gateway_url}/v1", timeout=30) as client:
        yield client


def events(response: httpx.Response) -> list[Any]:
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def speech(http: httpx.Client, **fields: Any) -> httpx.Response:
    return http.post("/audio/speech", json={"model": MODEL, "input": "chunks 5", "voice": "alloy"} | fields)


def transcription(http: httpx.Client, file: bytes = QUESTION, **fields: Any) -> httpx.Response:
    return http.post("/audio/transcriptions", data={"model": MODEL} | fields, files={"file": ("question.wav", file)})


def chat(http: httpx.Client, *messages: Any, **fields: Any) -> httpx.Response:
    return http.post("/chat/completions", json={"model": MODEL, "messages": list(messages)} | fields)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def spoken(file: bytes = QUESTION) -> dict[str, Any]:
    sound = {"data": base64.b64encode(file).decode(), "format": "wav"}
    return {"role": "user", "content": [{"type": "input_audio", "input_audio": sound}]}


def refused(response: httpx.Response, status: int, code: str, param: str | None) -> str:
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param), error
    return str(error["message"])


def test_lists(http: httpx.Client) -> None:
    assert [model["id"] for model in http.get("/models").json()["data"]] == [MODEL]
    assert http.get(f"/models/{MODEL}").json()["object"] == "model"
    assert http.get(f"/models/{MODEL}-turbo").json()["id"] == f"{MODEL}-turbo"
    refused(http.get("/models/other"), 404, "model_not_found", "model")
    assert http.get("/audio/models").json() == {"models": [{"id": MODEL}]}
    voices = {voice["id"] for voice in http.get("/audio/voices").json()["voices"]}
    assert voices > set(OPENAI_VOICES)


@pytest.mark.parametrize("voice", ["alloy", "verse", "vita", {"id": "marin"}])
def test_speech(http: httpx.Client, double: ProtocolDouble, voice: Any) -> None:
    response = speech(http, response_format="pcm", voice=voice, seed=3, instructions="Be glad.")
    assert response.headers["content-type"] == "audio/pcm"
    assert len(response.content) / 48_000 == pytest.approx(0.5, abs=0.01)
    assert np.median(np.frombuffer(response.content, "<i2")) == pytest.approx(302, abs=3)
    assert (double.inputs[0]["TASK"], double.inputs[0]["SEED"]) == ("tts", 3)


def test_speech_in_every_format_and_speed(http: httpx.Client) -> None:
    kinds = {"mp3": "audio/mpeg", "opus": "audio/ogg", "aac": "audio/aac", "flac": "audio/flac", "wav": "audio/wav"}
    for name, kind in kinds.items():
        response = speech(http, response_format=name)
        assert (response.status_code, response.headers["content-type"]) == (200, kind)
        assert len(response.content) > 500
    assert speech(http).headers["content-type"] == "audio/mpeg"
    slow = speech(http, response_format="pcm", speed=0.5)
    assert len(slow.content) / 48_000 == pytest.approx(1.0, abs=0.1)


def test_speech_as_events(http: httpx.Client) -> None:
    whole = speech(http, response_format="pcm", seed=3).content
    *pieces, done = events(speech(http, response_format="pcm", seed=3, stream_format="sse"))
    assert {piece["type"] for piece in pieces} == {"speech.audio.delta"}
    assert b"".join(base64.b64decode(piece["audio"]) for piece in pieces) == whole
    assert done["type"] == "speech.audio.done"
    assert done["usage"]["output_tokens"] == 10


def test_speech_streams(http: httpx.Client) -> None:
    """The first piece is here before the last one is made; a caller that leaves stops the work."""
    with http.stream(
        "POST",
        "/audio/speech",
        json={"model": MODEL, "input": "chunks 1000 0.05", "voice": "alloy", "response_format": "pcm"},
    ) as response:
        assert next(response.iter_bytes(2_000))


def test_a_caller_that_leaves_stops_the_work(http: httpx.Client, double: ProtocolDouble) -> None:
    test_speech_streams(http)
    until(double.cancelled.is_set)


def test_a_mode_in_the_name_of_the_model(http: httpx.Client, double: ProtocolDouble) -> None:
    model = f"{MODEL}-turbo"
    answers = (speech(http, model=model), transcription(http, model=model), chat(http, user("chunks 1"), model=model))
    assert [answer.status_code for answer in answers] == [200] * 3
    assert [inputs["MODE"] for inputs in double.inputs] == ["turbo"] * 3


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({"model": "tts-1"}, 404, "model_not_found", "model"),
        ({"voice": "nobody"}, 400, "invalid_request", "voice"),
        ({"input": ""}, 400, "invalid_request", "input"),
        ({"input": "a" * 4097}, 400, "invalid_request", "input"),
        ({"input": "..."}, 400, "invalid_request", "input"),
        ({"input": " "}, 400, "invalid_request", "input"),
        ({"input": 5}, 400, "invalid_request", "input"),
        ({"response_format": "ape"}, 400, "invalid_request", "response_format"),
        ({"speed": 9}, 400, "invalid_request", "speed"),
        ({"stream_format": "xml"}, 400, "invalid_request", "stream_format"),
        ({"input": "message-only [vita:server_full] server is full"}, 503, "server_full", None),
    ],
)
def test_speech_refused(http: httpx.Client, fields: dict[str, Any], status: int, code: str, param: str | None) -> None:
    refused(speech(http, **fields), status, code, param)


def test_an_error_in_the_middle_of_events_is_an_event(http: httpx.Client) -> None:
    response = speech(http, input="fail", stream_format="sse", response_format="pcm")
    assert events(response)[-1]["error"]["code"] == "engine_error"


def test_transcription(http: httpx.Client, double: ProtocolDouble) -> None:
    text = "".join(chunk_text(0, index) for index in range(3)).strip()
    assert transcription(http).json()["text"] == text
    assert transcription(http, prompt="Ada", language="en", include="logprobs").json()["text"] == text
    assert transcription(http, response_format="text").text == f"{text}\n"
    verbose = transcription(http, response_format="verbose_json").json()
    assert (verbose["text"], verbose["duration"], verbose["language"]) == (text, 1.85, "unknown")
    assert "segments" not in TranscriptionVerbose.model_validate(verbose, strict=True).model_fields_set
    assert transcription(http, response_format="verbose_json", language="zh").json()["language"] == "zh"
    assert transcription(http, response_format="srt").text == f"1\n00:00:00,000 --> 00:00:01,850\n{text}\n"
    assert transcription(http, response_format="vtt").text == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.850\n{text}\n"
    *deltas, done = events(transcription(http, stream="true"))
    assert [delta["delta"] for delta in deltas] == [chunk_text(0, index) for index in range(3)]
    assert (done["type"], done["text"]) == ("transcript.text.done", text)
    assert {inputs["TASK"] for inputs in double.inputs} == {"asr"}
    assert {len(inputs["AUDIO"]) for inputs in double.inputs} == {29_600}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("file", "fields", "status", "code", "param"),
    [
        (b"", {}, 400, "invalid_request", "file"),
        (b"no sound", {}, 400, "invalid_request", "file"),
        (QUESTION, {"model": "whisper-1"}, 404, "model_not_found", "model"),
        (QUESTION, {"response_format": "diarized_json"}, 400, "invalid_request", "response_format"),
        (QUESTION, {"temperature": "hot"}, 400, "invalid_request", "temperature"),
    ],
)
def test_transcription_refused(
    http: httpx.Client, file: bytes, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    refused(transcription(http, file, **fields), status, code, param)


def test_chat_in_text(http: httpx.Client, double: ProtocolDouble) -> None:
    messages = [
        {"role": "system", "content": "You are Ada."},
        user("One."),
        {"role": "assistant", "content": "Two."},
        user("Three."),
        {"role": "assistant", "content": [{"type": "text", "text": "Four."}]},
        user("chunks 2"),
    ]
    answer = chat(http, *messages, max_tokens=9, temperature=0.5, top_p=0.5, seed=4, tools=[], stop=[]).json()
    choice, text = answer["choices"][0], chunk_text(4, 0) + chunk_text(4, 1)
    assert choice["message"]["content"] == text
    assert (answer["object"], choice["finish_reason"], answer["usage"]["completion_tokens"]) == (
        "chat.completion",
        "stop",
        4,
    )
    sent = double.inputs[0]
    assert (sent["TASK"], sent["SYSTEM"], sent["TEXT"]) == ("text", "You are Ada.", "chunks 2")
    assert (sent["MAX_TOKENS"], sent["TEMPERATURE"], sent["TOP_P"], sent["SEED"]) == (9, 0.5, 0.5, 4)
    before = [(message["role"], message["content"]) for message in json.loads(str(sent["MESSAGES"]))]
    assert before == [("user", "One."), ("assistant", "Two."), ("user", "Three."), ("assistant", "Four.")]
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *chunks, usage, done = events(chat(http, user("chunks 2"), seed=4, **options))
    assert done == "[DONE]"
    assert usage["usage"]["completion_tokens"] == 4
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
    assert chunks[0]["choices"][0]["delta"]["role"] == "assistant"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks][-2:] == [None, "stop"]


def test_chat_takes_what_openai_takes(http: httpx.Client, double: ProtocolDouble) -> None:
    answer = chat(http, user("chunks 1"), top_p=0, temperature=1, seed=-1, stream=None)
    assert answer.json()["object"] == "chat.completion"
    sent = double.inputs[0]
    assert (sent["TEMPERATURE"], sent.get("TOP_P"), sent["SEED"]) == (0, None, 2**64 - 1)


@pytest.mark.parametrize("words", ["", " ", "\n"])
def test_a_system_message_without_words_is_none(http: httpx.Client, double: ProtocolDouble, words: str) -> None:
    empty = {"role": "system", "content": words}
    assert chat(http, empty, user("chunks 1")).status_code == 200
    assert chat(http, empty, {"role": "developer", "content": "Be glad."}, user("chunks 1")).status_code == 200
    assert [inputs.get("SYSTEM") for inputs in double.inputs] == [None, "Be glad."]


def test_chat_with_sound_in_and_out(http: httpx.Client, double: ProtocolDouble) -> None:
    fields = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
    message = chat(http, spoken(), **fields).json()["choices"][0]["message"]
    assert message["content"] is None
    assert message["audio"]["transcript"] == "".join(chunk_text(0, index) for index in range(3))
    with wave.open(io.BytesIO(base64.b64decode(message["audio"]["data"]))) as file:
        assert len(file.readframes(100_000)) / 48_000 == pytest.approx(0.3, abs=0.01)
    fields["audio"] = {"voice": "alloy", "format": "pcm16"}
    *chunks, _done = events(chat(http, spoken(), stream=True, **fields))
    parts = [chunk["choices"][0]["delta"].get("audio", {}) for chunk in chunks]
    assert len(b"".join(base64.b64decode(part.get("data", "")) for part in parts)) / 48_000 == pytest.approx(
        0.3, abs=0.01
    )
    assert "".join(part.get("transcript", "") for part in parts) == message["audio"]["transcript"]
    assert [part["expires_at"] for part in parts if "expires_at" in part]
    assert {(inputs["TASK"], len(inputs["AUDIO"])) for inputs in double.inputs} == {("chat", 29_600)}  # type: ignore[arg-type]


def test_usage(http: httpx.Client, double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    status = client_protocol_double._status

    def counted(inputs: dict[str, object], *rest: Any) -> Any:
        counts = {"prompt_tokens": 7, "cached_tokens": 4, "stream": str(inputs.get("SEED"))}
        return replace(status(inputs, *rest), **counts)  # type: ignore[arg-type]

    monkeypatch.setattr(client_protocol_double, "_status", counted)
    usage = chat(http, user("chunks 1")).json()["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]) == (7, {"cached_tokens": 4})
    double.otherwise = "chunks 2"
    sentences = " ".join("This is a sentence" + " of many words" * 20 + "." for _ in range(2))
    *_, done = events(speech(http, input=sentences, stream_format="sse"))
    streams = len(double.inputs) - 1
    assert streams > 1
    counts = {"input_tokens": 7 * streams, "output_tokens": 4 * streams, "total_tokens": 11 * streams}
    assert done["usage"] == counts


@pytest.mark.parametrize("format", ["pcm", "mp3", "wav"])
def test_speech_that_breaks_off(http: httpx.Client, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first piece the status is sent already: the body ends without its last chunk, which clients notice."""

    def breaks(inputs: dict[str, object], context: Any) -> Any:
        yield from list(client_protocol_double.chunks(inputs, context, "20"))[:15]
        context.abort(grpc.StatusCode.UNAVAILABLE, "gone")

    monkeypatch.setitem(client_protocol_double._SCRIPTS, "breaks", breaks)
    fields = {"model": MODEL, "input": "breaks", "response_format": format}
    with http.stream("POST", "/audio/speech", json=fields) as response:
        assert response.status_code == 200
        with pytest.raises(httpx.RemoteProtocolError):
            response.read()


@pytest.mark.parametrize(
    ("messages", "fields", "status", "code", "param"),
    [
        ([], {}, 400, "invalid_request", "messages"),
        ([user("a")], {"model": "gpt-5"}, 404, "model_not_found", "model"),
        ([user("")], {}, 400, "invalid_request", "messages"),
        ([{"role": "assistant", "content": "a"}], {}, 400, "invalid_request", "messages"),
        ([user(""), {"role": "assistant", "content": "a"}, user("b")], {}, 400, "invalid_request", "messages"),
        ([spoken(b"no sound")], {}, 400, "invalid_request", "input_audio"),
        ([user("a")], {"n": 2}, 400, "invalid_request", "n"),
        ([user("a")], {"stop": [""]}, 400, "invalid_request", "stop"),
        ([user("a")], {"stop": ["x"] * 5}, 400, "invalid_request", "stop"),
        ([user("a")], {"stop": "x", "modalities": ["text", "audio"]}, 400, "invalid_request", "stop"),
        ([user("a")], {"logprobs": True}, 400, "invalid_request", "logprobs"),
        ([user("a")], {"tool_choice": "required"}, 400, "invalid_request", "tool_choice"),
        ([user("a")], {"response_format": {"type": "json_object"}}, 400, "invalid_request", "response_format.type"),
        ([spoken(), {"role": "assistant", "content": "b"}, user("a")], {}, 400, "invalid_request", "messages.0"),
        (
            [user("a"), {"role": "assistant", "audio": {"id": "audio_1"}}, user("b")],
            {},
            404,
            "audio_not_found",
            "messages.1.audio.id",
        ),
        ([user("a")], {"audio": {"voice": "nobody"}}, 400, "invalid_request", "voice"),
        ([user("a")], {"modalities": ["video"]}, 400, "invalid_request", "modalities.0"),
        ([user("message-only [vita:server_full] server is full")], {}, 503, "server_full", None),
        ([user("message-only [vita:server_full] server is full")], {"stream": True}, 503, "server_full", None),
    ],
)
def test_chat_refused(
    http: httpx.Client, messages: list[Any], fields: dict[str, Any], status: int, code: str, param: str | None
) -> None:
    refused(chat(http, *messages, **fields), status, code, param)


def test_more_turns_than_a_server_takes(http: httpx.Client, double: ProtocolDouble) -> None:
    turn = [user("a"), {"role": "assistant", "content": "b"}]
    assert chat(http, *turn * 128, user("chunks 1")).status_code == 200
    said = refused(chat(http, *turn * 129, user("chunks 1")), 400, "invalid_request", "messages")
    assert said == (
        "messages: '258 turns' is not valid: at most 256 turns before the last one are taken; leave the oldest ones out"
    )


def test_speech_that_is_no_base64(http: httpx.Client) -> None:
    message = spoken()
    message["content"][0]["input_audio"]["data"] = "%%%"
    assert "it is base64" in refused(chat(http, message), 400, "invalid_request", "input_audio")
