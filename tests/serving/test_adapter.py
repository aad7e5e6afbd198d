"""Tensors, sealed messages, errors and calls in the terms of Triton, on a stand-in for its Python stub."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serving import seal as sealing
from serving.seal import MAX_AGE_S, MAX_BYTES, REFUSAL, new_secret
from triton_stub import InferenceRequest, InferenceResponse, Sender, Tensor, TritonError, triton_stub
from vita_audio.contract.errors import (
    BadMessage,
    EngineError,
    InvalidRequest,
    ServerFull,
    ServerStopping,
    VitaError,
    from_wire,
    to_wire,
)
from vita_audio.contract.messages import Cancel, Delta, GenerationSettings, Probe, Released, Start, Status
from vita_audio.decoding.served_stream import DecodedChunk


class Called:
    """The models that are called: the last request, and what is answered."""

    request: InferenceRequest
    answer = InferenceResponse()

    def __call__(self, request: InferenceRequest) -> InferenceResponse:
        self.request = request
        return self.answer


@pytest.fixture
def called() -> Called:
    return Called()


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch, called: Called) -> Iterator[ModuleType]:
    monkeypatch.setenv("VITA_ENGINES", "engines")
    monkeypatch.setenv("VITA_SECRET", new_secret())
    stub = triton_stub(called)
    monkeypatch.setitem(sys.modules, stub.__name__, stub)
    monkeypatch.delitem(sys.modules, "serving.adapter", raising=False)
    yield importlib.import_module("serving.adapter")
    del sys.modules["serving.adapter"]


SETTINGS = GenerationSettings("chat", "vanilla", (8192, 0), 50, 0.0, 0, 1.0, 1.0, 1)
DELTA = Delta(Status("s1", 0, "running"), [5, 6, 7])


def test_a_message_reaches_another_model_of_the_server(adapter: ModuleType) -> None:
    tensors = adapter.ModelCalls().tensors(DELTA)
    assert [tensor.as_numpy().dtype for tensor in tensors] == [np.object_, np.int32]
    request = InferenceRequest(inputs=tensors)
    reader = adapter.ModelCalls()
    assert reader.read(request) == DELTA
    assert reader.read(request) == DELTA
    once = adapter.ModelCalls(once=True)
    assert once.read(request) == DELTA
    with pytest.raises(BadMessage, match=REFUSAL):
        once.read(request)


def test_embeddings_travel_with_a_start_under_its_seal(adapter: ModuleType) -> None:
    rows = np.arange(6, dtype=np.float32).reshape(2, 3)
    tensors = adapter.ModelCalls().tensors(Start(SETTINGS, [5, 6, 6], rows))
    assert [tensor.name() for tensor in tensors] == ["MESSAGE", "TOKENS", "EMBEDDINGS"]
    received = adapter.ModelCalls(most_rows_bytes=rows.nbytes).read(InferenceRequest(inputs=tensors))
    assert np.array_equal(received.embeddings, rows)
    changed = Tensor("EMBEDDINGS", rows + 1)
    for inputs, most in (([*tensors[:2], changed], 99), (tensors[:2], 99), (tensors, rows.nbytes - 1), (tensors, 0)):
        with pytest.raises(BadMessage, match=REFUSAL):
            adapter.ModelCalls(most_rows_bytes=most).read(InferenceRequest(inputs=inputs))


def test_the_speech_of_a_plus_model_comes_as_embeddings(adapter: ModuleType, called: Called) -> None:
    rows = np.ones((5, 3), np.float32)
    called.answer = InferenceResponse([Tensor("EMBEDDINGS", rows)])
    assert adapter.ModelCalls().ask_speech_tokenizer(np.zeros(400, np.float32), output="EMBEDDINGS") is rows
    assert called.request.requested == ["EMBEDDINGS"]


def test_a_model_without_a_secret_does_not_load(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VITA_SECRET")
    with pytest.raises(EngineError, match="VITA_SECRET"):
        adapter.ModelCalls()


def test_what_is_missing_misshapen_or_too_large_is_refused_uncopied(adapter: ModuleType) -> None:
    message, tokens = adapter.ModelCalls().tensors(DELTA)

    class Large(np.ndarray):
        def tobytes(self, *_: Any, **__: Any) -> bytes:
            pytest.fail("copied")

    large = Tensor("TOKENS", np.zeros(MAX_BYTES // 4 + 1, np.int32).view(Large))
    text = message.as_numpy()
    for inputs in (
        [message],
        [tokens],
        [message, large],
        [Tensor("MESSAGE", np.array([], np.object_)), tokens],
        [Tensor("MESSAGE", np.array([text[0], text[0]])), tokens],
        [message, Tensor("TOKENS", np.array([5, 6, 8], np.int32))],
    ):
        with pytest.raises(BadMessage, match=REFUSAL):
            adapter.ModelCalls().read(InferenceRequest(inputs=inputs))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(max_size=300), st.lists(st.integers(-(2**31), 2**31 - 1), max_size=5), st.booleans())
def test_anything_in_a_message_is_refused_sealed_or_not(
    adapter: ModuleType, text: bytes, ids: list[int], is_sealed: bool
) -> None:
    """A message of this server that is none ends as one of a client's does: with one error."""
    calls, tokens = adapter.ModelCalls(), np.array(ids, np.int32)
    sealed = calls._seal.seal(text, tokens.tobytes()) if is_sealed else text
    message = Tensor("MESSAGE", np.array([sealed], np.object_))
    with pytest.raises(BadMessage) as refused:
        calls.read(InferenceRequest(inputs=[message, Tensor("TOKENS", tokens)]))
    assert (str(refused.value) == REFUSAL) is not is_sealed
    assert str(refused.value).isprintable()


def test_speech_is_sealed_on_its_way_to_the_tokenizer(adapter: ModuleType, called: Called) -> None:
    called.answer = InferenceResponse([Tensor("CODES", np.array([3, 4], np.int32))])
    speech = np.array([0.0, 0.5, -0.5], np.float64)
    assert adapter.ModelCalls().ask_speech_tokenizer(speech).tolist() == [3, 4]
    asked = called.request
    assert (asked.model_name, asked.requested) == ("speech_tokenizer", ["CODES"])
    received = adapter.ModelCalls().read_speech(asked)
    assert (received.dtype, received.tolist()) == (np.float32, [0.0, 0.5, -0.5])
    asked.tensors["AUDIO"] = Tensor("AUDIO", received[:2])
    with pytest.raises(BadMessage, match=REFUSAL):
        adapter.ModelCalls().read_speech(asked)


@pytest.mark.parametrize("message", [Cancel("s1"), Released("s1")])
def test_the_language_model_is_notified(adapter: ModuleType, called: Called, message: Cancel | Released) -> None:
    adapter.ModelCalls().notify_language_model(message)
    assert (called.request.model_name, called.request.requested) == ("speech_lm", [])
    assert adapter.ModelCalls(once=True).read(called.request) == message


def test_a_cancel_may_go_to_speech(adapter: ModuleType, called: Called) -> None:
    adapter.ModelCalls().notify_language_model(Cancel("s1"), model="speech")
    assert called.request.model_name == "speech"


def test_what_speech_sends_passes_delivery_unchanged(adapter: ModuleType) -> None:
    chunk = DecodedChunk(
        "é", np.array([5, 6], np.int32), np.array([7, 8], np.int16), Status("s1", 3, "running"), prompt=(3, 4)
    )
    sent: list[tuple[list[Tensor] | None, bool]] = []
    calls = adapter.ModelCalls()
    for content, final in ((chunk, False), (Probe("s1"), False), (None, True)):
        calls.send_to_delivery(lambda tensors, last: sent.append((tensors, last)), content, final)
    assert sent[2] == (None, True)
    assert [final for _, final in sent] == [False, False, True]
    passed, direct, silent = Sender(), Sender(), Sender()
    for (tensors, _), sender in zip(sent, (passed, silent), strict=False):
        assert tensors is not None
        request = InferenceRequest(inputs=tensors)
        assert calls.read(request) == Probe("s1")
        adapter.pass_on(request, sender)
    adapter.send_chunk(direct, chunk)
    assert silent.sent == [(None, 1)]
    values = [
        [(tensor.name(), tensor.as_numpy().dtype, tensor.as_numpy().tolist()) for tensor in response.tensors.values()]
        for sender in (passed, direct)
        for response, flags in sender.sent
        if response is not None and flags == 1
    ]
    assert sorted(values[0]) == sorted(values[1])
    request = InferenceRequest(inputs=sent[0][0] or ())
    request.tensors["TOKENS"] = Tensor("TOKENS", np.array([5], np.int32))  # another stream's
    with pytest.raises(BadMessage, match=REFUSAL):
        calls.read(request)


@pytest.mark.parametrize(
    ("text", "words"),
    [(to_wire(BadMessage("no")), "no"), ("Stub process is not healthy.", "Stub process is not healthy.")],
)
def test_a_refused_call_is_an_error_with_one_code(adapter: ModuleType, called: Called, text: str, words: str) -> None:
    called.answer = InferenceResponse(error=TritonError(text))
    calls = adapter.ModelCalls()
    acts: dict[str, Callable[[], object]] = {
        "speech_lm": lambda: calls.notify_language_model(Cancel("s1")),
        "speech_tokenizer": lambda: calls.ask_speech_tokenizer(np.zeros(3, np.float32)),
    }
    for model, act in acts.items():
        with pytest.raises(EngineError) as refused:
            act()
        assert str(refused.value) == f"{model}: {words}"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("TOP_P", 7, "it is at most 1"), "INVALID_ARG"),
        (BadMessage("no"), "INVALID_ARG"),
        (ServerFull(1, 2), "UNAVAILABLE"),
        (ServerStopping(), "UNAVAILABLE"),
        (EngineError("broke"), "INTERNAL"),
        (ValueError("not on purpose"), "INTERNAL"),
    ],
)
def test_an_error_has_a_code_and_a_traceback_only_where_it_was_not_on_purpose(
    adapter: ModuleType, caplog: pytest.LogCaptureFixture, error: Exception, code: str
) -> None:
    with caplog.at_level(logging.INFO):
        answered = adapter.error_response(error).error()
    assert (answered.message(), answered.code()) == (to_wire(error), code)
    assert from_wire(answered.message()) is not None
    assert [record.exc_info[1] for record in caplog.records if record.exc_info] == (
        [] if isinstance(error, VitaError) else [error]
    )


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("tensors", [None, []])
def test_a_last_response_that_cannot_be_sent_ends_the_process(
    adapter: ModuleType, monkeypatch: pytest.MonkeyPatch, final: bool, tensors: list[Tensor] | None
) -> None:
    """Its request would stay open for ever; another response costs its stream only."""

    class Full(Sender):
        def send(self, *_: object, **__: object) -> None:
            raise RuntimeError("Failed to increase the shared memory pool size")

    ended: list[bool] = []
    monkeypatch.setattr(adapter, "end_process", lambda: ended.append(True))
    with pytest.raises(RuntimeError, match="shared memory"):
        adapter.send(Full(), tensors, final)
    assert ended == [True] * final


def test_speech_may_wait_for_the_tokenizer_longer_than_a_message_is_on_its_way(
    adapter: ModuleType, called: Called, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = adapter.ModelCalls()
    called.answer = InferenceResponse([Tensor("CODES", np.zeros(1, np.int32))])
    calls.ask_speech_tokenizer(np.zeros(4, np.float32))
    start = InferenceRequest(inputs=calls.tensors(Start(SETTINGS, [5])))
    monotonic = time.monotonic
    monkeypatch.setattr(sealing.time, "monotonic", lambda: monotonic() + MAX_AGE_S + 1)
    assert calls.read_speech(called.request).tolist() == [0.0] * 4
    with pytest.raises(BadMessage, match=REFUSAL):
        calls.read(start)


def test_the_final_flag_goes_with_the_last_response_or_alone(adapter: ModuleType) -> None:
    sender, tensors = Sender(), [adapter.text_tensor("STATUS", "é")]
    adapter.send(sender, tensors, final=False)
    adapter.send(sender, tensors, final=True)
    adapter.send(sender, None, final=True)
    adapter.send(sender, None, final=False)
    assert [(response is None, flags) for response, flags in sender.sent] == [
        (False, 0),
        (False, 1),
        (True, 1),
        (True, 0),
    ]
    assert tensors[0].as_numpy().tolist() == ["é".encode()]
    assert adapter.read(InferenceRequest(inputs=tensors), "TEXT") is None
