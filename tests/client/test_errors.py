"""Every way a stream can fail becomes one typed error with a code, in both clients."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vita_audio.contract.errors import EngineError, InvalidRequest, ServerFull, ServerStopping, VitaError, to_wire
from vita_client import (
    AccessDenied,
    BadResponse,
    ClientError,
    GenerationFailed,
    RequestRejected,
    ServerUnavailable,
    StatusUpdate,
    StreamBroken,
    StreamCancelled,
    TextDelta,
)
from vita_client.errors import from_message, from_rpc


def test_in_band_failure_raises_after_what_came_before(client: Any) -> None:
    stream = client.stream("fail")
    events = []
    with pytest.raises(GenerationFailed, match="the server failed: the flow engine broke") as failed:
        events.extend(stream)
    assert failed.value.code == "engine_error"
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["one ", "two "]
    assert isinstance(events[-1], StatusUpdate)
    assert stream.status.state == "failed"
    assert list(stream) == []  # it stays over


@pytest.mark.parametrize(
    ("ending", "error", "code", "words"),
    [
        (
            "cancelled cancelled by the caller",
            StreamCancelled,
            "cancelled",
            "server cancelled the stream: by the c",
        ),
        ("cancelled - gone", StreamCancelled, "cancelled", "cancelled the stream: gone"),
        ("cancelled shutting_down bye", ServerUnavailable, "shutting_down", "cancelled the stream: bye"),
        ("failed shutting_down bye", ServerUnavailable, "shutting_down", "the server failed: bye"),
        ("failed unhealthy speech_lm died", ServerUnavailable, "unhealthy", "the server failed: speech_lm died"),
        ("failed server_full 4 of 4", ServerUnavailable, "server_full", "4 of 4"),
        ("failed not_ready loading", ServerUnavailable, "not_ready", "loading"),
        ("failed invalid_request TOP_P", RequestRejected, "invalid_request", "TOP_P"),
        ("failed engine_error", GenerationFailed, "engine_error", "no reason given"),
        ("failed - what now", GenerationFailed, "generation_failed", "what now"),
        ("failed of_a_newer_server x", GenerationFailed, "of_a_newer_server", "x"),
    ],
)
def test_the_code_of_a_final_status_chooses_the_class(
    client: Any, ending: str, error: type[ClientError], code: str, words: str
) -> None:
    with pytest.raises(error, match=words) as caught:
        client.collect(f"ends {ending}")
    assert (type(caught.value), caught.value.code) == (error, code)


def test_a_stream_without_a_final_status_is_an_error(client: Any) -> None:
    with pytest.raises(StreamBroken, match="without a final status after 1 responses") as caught:
        client.collect("short")
    assert (caught.value.code, isinstance(caught.value, ServerUnavailable)) == ("stream_broken", True)


def test_a_fault_after_the_final_status_does_no_harm(client: Any) -> None:
    assert client.collect("late-abort").text == "whole"


@pytest.mark.parametrize(
    ("status", "error", "code", "start"),
    [
        ("INVALID_ARGUMENT", RequestRejected, "invalid_request", "some words"),
        ("UNAVAILABLE", ServerUnavailable, "unavailable", "no answer from URL: some words"),
        ("NOT_FOUND", ServerUnavailable, "not_ready", "URL does not serve this model: some words"),
        ("UNIMPLEMENTED", ServerUnavailable, "not_ready", "URL does not serve this model: some words"),
        ("UNAUTHENTICATED", AccessDenied, "access_denied", "URL refused this client: some words"),
        ("PERMISSION_DENIED", AccessDenied, "access_denied", "URL refused this client: some words"),
        ("INTERNAL", GenerationFailed, "generation_failed", "some words (INTERNAL)"),
        ("RESOURCE_EXHAUSTED", GenerationFailed, "generation_failed", "some words (RESOURCE_EXHAUSTED)"),
        ("UNKNOWN", GenerationFailed, "generation_failed", "some words (UNKNOWN)"),
        ("CANCELLED", ServerUnavailable, "unavailable", "no answer from URL: some words"),
    ],
)
def test_status_codes_become_typed_errors(
    client: Any, double: Any, status: str, error: type[ClientError], code: str, start: str
) -> None:
    with pytest.raises(error) as caught:
        client.collect(f"abort {status} some words")
    assert (type(caught.value), caught.value.code) == (error, code)
    assert str(caught.value) == start.replace("URL", double.url)


@pytest.mark.parametrize("status", ["UNAVAILABLE", "CANCELLED"])
def test_a_stream_that_the_other_side_ends_is_broken(client: Any, status: str) -> None:
    """What a proxy does when its server dies."""
    stream = client.stream(f"one-then-abort {status} gone")
    assert isinstance(next(stream), TextDelta)
    with pytest.raises(StreamBroken, match=r"went away after 1 responses .*gone") as broken:
        list(stream)
    assert (broken.value.code, stream.cancelled) == ("stream_broken", False)


@pytest.mark.parametrize("status", ["UNAVAILABLE", "UNKNOWN", "CANCELLED"])
def test_a_connection_lost_after_a_response_is_a_broken_stream(status: str) -> None:
    code = grpc.StatusCode[status]
    lost = from_rpc(code, "reset", url="host:1", timeout_s=9, responses=2)
    assert (type(lost), str(lost)) == (StreamBroken, "the server at host:1 went away after 2 responses (reset)")
    assert type(from_rpc(code, "reset", url="host:1", timeout_s=9, responses=0)) is not StreamBroken
    nameless = from_rpc(code, None, url="host:1", timeout_s=9, responses=0)
    assert status in str(nameless)


TOP_P = InvalidRequest("TOP_P", 7.0, "it is at most 1")


@pytest.mark.parametrize("status", ["message-only", "abort INVALID_ARGUMENT", "abort UNAVAILABLE", "abort INTERNAL"])
@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (TOP_P, RequestRejected),
        (ServerFull(4, 8), ServerUnavailable),
        (ServerStopping(), ServerUnavailable),
        (VitaError("speech_lm died", code="unhealthy"), ServerUnavailable),
        (EngineError("the speech tokenizer broke"), GenerationFailed),
        (VitaError("x", code="of_a_newer_server", field="SPEED"), GenerationFailed),
    ],
)
def test_the_code_of_an_error_chooses_its_class(
    client: Any, status: str, sent: VitaError, error: type[VitaError]
) -> None:
    prefix = "in ensemble 'vita_audio', " if status == "message-only" else ""
    with pytest.raises(error) as caught:
        client.collect(f"{status} {prefix}{to_wire(sent)}")
    assert type(caught.value) is error
    assert (caught.value.code, caught.value.field, str(caught.value)) == (sent.code, sent.field, str(sent))


@pytest.mark.parametrize(
    ("words", "error", "code"),
    [
        ("[request id: 7] inference input 'TEXT' data-type is 'INT32'", RequestRejected, "invalid_request"),
        ("unexpected inference input 'SPEED'", RequestRejected, "invalid_request"),
        ("expected 11 inputs but got 12", RequestRejected, "invalid_request"),
        ("Request for unknown model: 'vita_audio' is not found", ServerUnavailable, "not_ready"),
        ("in ensemble 'vita_audio', model 'speech_lm' version 1 is not ready", ServerUnavailable, "not_ready"),
        ("Server is stopping, scheduler for model has stopped", ServerUnavailable, "shutting_down"),
        ("in ensemble 'vita_audio', Stub process is not healthy.", ServerUnavailable, "unhealthy"),
        ("Stub process 'speech_lm_0_0' is unhealthy and it will be restarted", ServerUnavailable, "unhealthy"),
        ("in ensemble 'vita_audio', server is full", GenerationFailed, "generation_failed"),
        ("in ensemble 'vita_audio', TOP_P: 7.0 is not valid: no code", GenerationFailed, "generation_failed"),
    ],
)
def test_messages_without_a_code_come_from_triton(client: Any, words: str, error: type[VitaError], code: str) -> None:
    with pytest.raises(error) as caught:
        client.collect(f"message-only {words}")
    assert (type(caught.value), caught.value.code, caught.value.field) == (error, code, "")
    assert str(caught.value).endswith(words.split("] ")[-1].split("', ", 1)[-1])
    assert "request id" not in str(caught.value)
    assert "in ensemble" not in str(caught.value)


@pytest.mark.parametrize(
    "words",
    [
        "in ensemble 'vita_audio', Failed to increase the shared memory pool size for key '/vita_audio_1_ab_2' to 9",
        "Unable to initialize shared memory key '/vita_audio_1_ab_2' to requested size (9 bytes).",
        "Failed to create new mapped region for the grown shared memory region '/vita_audio_1_ab_2'. No such file",
        "[request id: a\nb\x1b[31m] Request for unknown model: '/vita\u2028_1_ab_2\x1b[31m\x00' is not found",
    ],
)
def test_what_triton_quotes_is_one_printable_line_without_keys(words: str) -> None:
    text = str(from_message(words, "host:1"))
    assert text.isprintable()
    assert "/vita_audio_1_ab_2" not in text
    assert len(str(from_message("Request for unknown model: " + "x" * 100_000, "host:1"))) < 600


@pytest.mark.parametrize("which", ["pcm", "type", "utf8", "length", "status", "missing"])
def test_a_response_outside_the_contract_is_named(client: Any, which: str) -> None:
    with pytest.raises(BadResponse) as caught:
        client.collect(f"bad-tensor {which}")
    assert caught.value.code == "bad_response"


def test_a_call_is_read_to_its_end_after_an_error_message(client: Any, double: Any) -> None:
    """tritonserver 2.51 never frees a request whose call is cancelled after such a message."""
    with pytest.raises(GenerationFailed, match=r"^broke$"):
        client.collect("message-then-end")
    assert not double.cancelled.wait(0.5)


def test_a_bad_response_after_the_final_status_is_named(client: Any) -> None:
    with pytest.raises(BadResponse):
        client.collect("bad-tail")


@pytest.mark.parametrize(
    ("script", "error"),
    [
        ("bad-tensor-then-hang pcm", BadResponse),
        ("ends-then-hang failed engine_error broke", GenerationFailed),
        ("ends-then-hang cancelled cancelled gone", StreamCancelled),
    ],
)
def test_a_failure_ends_the_call_at_once(client: Any, double: Any, script: str, error: type[ClientError]) -> None:
    stream = client.stream(script, timeout_s=40)
    with pytest.raises(error):
        list(stream)
    assert double.cancelled.wait(20)
    assert stream.metrics.elapsed_ms < 20_000


@given(text=st.text())
def test_any_text_of_a_server_is_one_bounded_line(text: str) -> None:
    for error in (
        from_message(text, "host:1"),
        from_rpc(grpc.StatusCode.INTERNAL, text, url="host:1", timeout_s=1, responses=0),
    ):
        assert isinstance(error, ClientError)
        assert error.code
        assert len(str(error).splitlines()) <= 1
        assert len(str(error)) < 600


def test_a_long_text_is_cut_at_its_end() -> None:
    assert str(from_message("x" * 500, "host:1")) == "x" * 500
    assert str(from_message("x" * 501, "host:1")) == "x" * 497 + "..."
