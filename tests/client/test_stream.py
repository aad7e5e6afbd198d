"""The synchronous client against a protocol double: events, metrics, cancelling, deadlines, every way to fail."""

from __future__ import annotations

import gc
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client_protocol_double import CHUNK_SAMPLES, ProtocolDouble, chunk_pcm, chunk_text
from vita_audio.contract.errors import EngineError, ServerFull, ServerStopping, VitaError, to_wire
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import (
    AccessDenied,
    BadResponse,
    Client,
    ClientClosed,
    Connection,
    DeadlineExceeded,
    GenerationFailed,
    InvalidRequest,
    Pcm,
    RequestRejected,
    ServerUnavailable,
    StatusUpdate,
    StreamBroken,
    StreamCancelled,
    TextDelta,
    TokensDelta,
    build_request,
)

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def double() -> Iterator[ProtocolDouble]:
    server = ProtocolDouble()
    yield server
    server.close()


@pytest.fixture
def client(double: ProtocolDouble) -> Iterator[Client]:
    with Client(double.url) as opened:
        yield opened


def test_events_come_in_order_and_outputs_are_found_by_name(client: Client) -> None:
    with client.stream("chunks 4", seed=3) as stream:
        events = list(stream)
    assert [type(event) for event in events] == [TextDelta, TokensDelta, Pcm, StatusUpdate] * 4
    assert [event.text for event in events if isinstance(event, TextDelta)] == [chunk_text(3, i) for i in range(4)]
    assert [event.ids for event in events if isinstance(event, TokensDelta)] == [(3, i) for i in range(4)]
    sounds = [event for event in events if isinstance(event, Pcm)]
    for index, sound in enumerate(sounds):
        assert sound.samples.dtype == np.int16
        np.testing.assert_array_equal(sound.samples, chunk_pcm(3, index))
        assert sound.sample_rate_hz == 22_050
    states = [event.status.state for event in events if isinstance(event, StatusUpdate)]
    assert states == ["running"] * 3 + ["done"]
    assert stream.status is not None
    assert (stream.status.reason, stream.status.seed, stream.cancelled) == ("end_token", 3, False)


def test_collect_joins_everything(client: Client) -> None:
    reply = client.collect("chunks 5", seed=1)
    assert reply.text == "".join(chunk_text(1, i) for i in range(5))
    assert reply.tokens == tuple(number for i in range(5) for number in (1, i))
    np.testing.assert_array_equal(reply.pcm, np.concatenate([chunk_pcm(1, i) for i in range(5)]))
    assert reply.status is not None
    assert reply.status.state == "done"


def test_metrics_are_measured_at_the_client(client: Client) -> None:
    reply = client.collect("chunks 4 0.05")
    metrics = reply.metrics
    assert metrics.ttfa_ms is not None
    assert metrics.first_text_ms == metrics.ttfa_ms
    assert metrics.last_audio_ms is not None
    assert metrics.last_audio_ms - metrics.ttfa_ms >= 140  # three pauses of 50 ms between four chunks
    assert metrics.elapsed_ms >= metrics.last_audio_ms
    assert (metrics.responses, metrics.tokens) == (4, 8)
    assert metrics.audio_s == pytest.approx(0.4)
    assert metrics.real_time_factor == pytest.approx(metrics.last_audio_ms / 400)
    assert metrics.tokens_per_s == pytest.approx(8e3 / metrics.elapsed_ms)


def test_only_given_fields_are_sent(double: ProtocolDouble, client: Client) -> None:
    client.collect("chunks 1")
    assert double.inputs[0] == {"TEXT": "chunks 1", "TASK": "chat"}
    client.collect(
        "chunks 1",
        task="tts",
        mode="1,4,2,5",
        max_tokens=9,
        temperature=0.5,
        top_k=7,
        top_p=0.25,
        repetition_penalty=1.5,
        seed=2**63,
    )
    assert double.inputs[1] == {
        "TEXT": "chunks 1",
        "TASK": "tts",
        "MODE": "1,4,2,5",
        "MAX_TOKENS": 9,
        "TEMPERATURE": 0.5,
        "TOP_K": 7,
        "TOP_P": 0.25,
        "REPETITION_PENALTY": 1.5,
        "SEED": 2**63,
    }


def test_speech_is_sent_at_16_khz(double: ProtocolDouble, client: Client) -> None:
    client.collect(audio=np.zeros((8000, 2), np.int16), sample_rate=8000, task="asr")
    sent = double.inputs[0]
    assert (sent.get("SAMPLE_RATE", INPUT_SAMPLE_RATE_HZ), sent["TASK"]) == (16_000, "asr")
    assert np.shape(sent["AUDIO"]) == (16_000,)


def test_one_request_may_be_sent_many_times(double: ProtocolDouble, client: Client) -> None:
    request = build_request("chunks 2", seed=4)
    texts = [client.send(request).collect().text for _ in range(3)]
    assert len(set(texts)) == 1
    assert len({sent.id for sent in double.requests}) == 3


def test_headers_of_client_and_call(double: ProtocolDouble) -> None:
    with Client(double.url, headers={"Authorization": "Bearer x"}) as client:
        client.collect("chunks 1", headers={"traceparent": "00-ab-cd-01"})
    sent = double.headers[0]
    assert (sent["authorization"], sent["traceparent"]) == ("Bearer x", "00-ab-cd-01")
    assert "triton_grpc_error" not in sent  # it kills tritonserver 2.51


@pytest.mark.parametrize("headers", [{"bad name": "x"}, {"": "x"}, {"name": "line\nbreak"}, {"a-bin": "x"}, {"n": "é"}])
def test_bad_headers_are_refused_before_sending(client: Client, headers: dict[str, str]) -> None:
    with pytest.raises(InvalidRequest, match="headers"):
        client.stream("chunks 1", headers=headers)


def test_streams_of_several_threads_do_not_mix(client: Client) -> None:
    texts: dict[int, str] = {}

    def run(seed: int) -> None:
        texts[seed] = client.collect("chunks 6 0.01", seed=seed).text

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert texts == {seed: "".join(chunk_text(seed, i) for i in range(6)) for seed in range(8)}


def test_streams_read_in_turns_by_one_thread(client: Client) -> None:
    streams = [client.stream("chunks 3", seed=seed) for seed in range(4)]
    heard: dict[int, str] = dict.fromkeys(range(4), "")
    for round_of_events in zip(*streams, strict=True):
        for seed, event in enumerate(round_of_events):
            heard[seed] += event.text if isinstance(event, TextDelta) else ""
    assert heard == {seed: "".join(chunk_text(seed, i) for i in range(3)) for seed in range(4)}


def test_cancel_ends_the_iteration_and_reaches_the_server(double: ProtocolDouble, client: Client) -> None:
    stream = client.stream("chunks 1000 0.01")
    for event in stream:
        if isinstance(event, StatusUpdate) and event.status.index == 2:
            stream.cancel()
    assert stream.cancelled
    assert double.cancelled.wait(5)


def test_cancel_from_another_thread_wakes_a_waiting_reader(double: ProtocolDouble, client: Client) -> None:
    stream = client.stream("stall")
    threading.Timer(0.2, stream.cancel).start()
    started_s = time.monotonic()
    events = list(stream)
    assert time.monotonic() - started_s < 3
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["one "]
    assert double.cancelled.wait(5)


def test_leaving_the_context_or_dropping_the_stream_cancels_it(double: ProtocolDouble, client: Client) -> None:
    with client.stream("stall") as stream:
        next(stream)
    assert double.cancelled.wait(5)
    double.cancelled.clear()
    for _ in client.stream("stall"):
        break
    gc.collect()
    assert double.cancelled.wait(5)


@pytest.mark.parametrize("script", ["hang", "stall"])
def test_a_server_that_never_answers_meets_the_deadline(double: ProtocolDouble, client: Client, script: str) -> None:
    started_s = time.monotonic()
    with pytest.raises(DeadlineExceeded, match=r"within 0\.3 s"):
        client.collect(script, timeout_s=0.3)
    assert time.monotonic() - started_s < 2
    assert double.cancelled.wait(5)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf"), None])
def test_there_is_always_a_deadline(client: Client, timeout_s: float) -> None:
    with pytest.raises(InvalidRequest, match="timeout_s"):
        client.stream("chunks 1", timeout_s=timeout_s)


def test_in_band_failure_raises_after_what_came_before(client: Client) -> None:
    stream = client.stream("fail")
    events = []
    with pytest.raises(GenerationFailed, match="the flow engine broke") as failed:
        events.extend(stream)
    assert failed.value.code == "engine_error"
    assert [event.text for event in events if isinstance(event, TextDelta)] == ["one ", "two "]
    assert isinstance(events[-1], StatusUpdate)
    assert stream.status is not None
    assert stream.status.state == "failed"
    assert list(stream) == []  # it stays over


def test_a_stream_the_server_cancels_is_an_error(client: Client) -> None:
    with pytest.raises(StreamCancelled, match="server is shutting down"):
        client.collect("server-cancels")


def test_a_stream_without_a_final_status_is_an_error(client: Client) -> None:
    with pytest.raises(StreamBroken, match="without a final status after 1 responses"):
        client.collect("short")


def test_a_fault_after_the_final_status_does_no_harm(client: Client) -> None:
    assert client.collect("late-abort").text == "whole"


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("INVALID_ARGUMENT", RequestRejected),
        ("UNAVAILABLE", ServerUnavailable),
        ("NOT_FOUND", ServerUnavailable),
        ("UNAUTHENTICATED", AccessDenied),
        ("PERMISSION_DENIED", AccessDenied),
        ("INTERNAL", GenerationFailed),
        ("RESOURCE_EXHAUSTED", GenerationFailed),
        ("CANCELLED", StreamCancelled),
    ],
)
def test_status_codes_become_typed_errors(client: Client, code: str, error: type[Exception]) -> None:
    with pytest.raises(error, match="some words") as caught:
        client.collect(f"abort {code} some words")
    assert "in ensemble" not in str(caught.value)
    assert type(caught.value) is error


TOP_P = InvalidRequest("TOP_P", 7.0, "it is at most 1")


@pytest.mark.parametrize("status", ["message-only", "abort INVALID_ARGUMENT", "abort UNAVAILABLE", "abort INTERNAL"])
@pytest.mark.parametrize(
    ("sent", "error"),
    [
        (TOP_P, RequestRejected),
        (ServerFull(4, 8), ServerUnavailable),
        (ServerStopping(), ServerUnavailable),
        (EngineError("the speech tokenizer broke"), GenerationFailed),
        (VitaError("x", code="of_a_newer_server", field="SPEED"), GenerationFailed),
    ],
)
def test_the_code_of_an_error_chooses_its_class(
    client: Client, status: str, sent: VitaError, error: type[VitaError]
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
        ("Request for unknown model: 'vita_audio' is not found", ServerUnavailable, "not_ready"),
        ("in ensemble 'vita_audio', server is full", GenerationFailed, "generation_failed"),
        ("in ensemble 'vita_audio', TOP_P: 7.0 is not valid: no code", GenerationFailed, "generation_failed"),
    ],
)
def test_messages_without_a_code_come_from_triton(
    client: Client, words: str, error: type[VitaError], code: str
) -> None:
    with pytest.raises(error) as caught:
        client.collect(f"message-only {words}")
    assert (type(caught.value), caught.value.code, caught.value.field) == (error, code, "")
    assert str(caught.value).endswith(words.split("] ")[-1].split("', ", 1)[-1])
    assert "request id" not in str(caught.value)
    assert "in ensemble" not in str(caught.value)


@pytest.mark.parametrize("which", ["pcm", "type", "utf8", "length", "status", "missing"])
def test_a_response_outside_the_contract_is_named(client: Client, which: str) -> None:
    with pytest.raises(BadResponse):
        client.collect(f"bad-tensor {which}")


def test_no_server() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with Client(f"127.0.0.1:{port}") as client:
        started_s = time.monotonic()
        with pytest.raises(ServerUnavailable, match=rf"no answer from 127.0.0.1:{port}: .*refused"):
            client.collect("chunks 1")
        assert time.monotonic() - started_s < 3
        health = client.health()
        assert not health.ready
        assert "refused" in health.reason


def test_a_port_that_accepts_and_says_nothing() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        connection = Connection(f"127.0.0.1:{silent.getsockname()[1]}", connect_timeout_s=0.5)
        with Client(connection=connection) as client:
            started_s = time.monotonic()
            with pytest.raises(ServerUnavailable, match="no answer"):
                client.collect("chunks 1", timeout_s=20)
            assert time.monotonic() - started_s < 5


def test_a_server_killed_in_the_middle() -> None:
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "helpers" / "client_protocol_double.py")],
        stdout=subprocess.PIPE,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'client'}", "PATH": ""},
        text=True,
    )
    try:
        assert process.stdout is not None
        with Client(f"localhost:{int(process.stdout.readline())}") as client:
            stream = client.stream("chunks 1000 0.02")
            heard = [next(stream) for _ in range(12)]
            assert sum(isinstance(event, Pcm) for event in heard) == 3
            process.kill()
            with pytest.raises(StreamBroken, match="went away after"):
                list(stream)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("quiet_s", [0.0, 1.5])
def test_a_dead_network_is_noticed_by_keepalive(double: ProtocolDouble, quiet_s: float) -> None:
    """A relay that stops forwarding looks like a pulled cable: nothing arrives, nothing is refused."""
    with Relay(double.port) as relay:
        connection = Connection(f"127.0.0.1:{relay.port}", keepalive_s=0.2)
        with Client(connection=connection) as client:
            stream = client.stream("stall", timeout_s=60)
            next(stream)
            time.sleep(quiet_s)
            relay.freeze()
            started_s = time.monotonic()
            with pytest.raises(StreamBroken, match="went away"):
                list(stream)
            assert time.monotonic() - started_s < 5


class Relay:
    """A TCP relay on loopback that can stop forwarding without closing anything."""

    def __init__(self, target_port: int) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._target_port, self._frozen = target_port, threading.Event()
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> Relay:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def _accept(self) -> None:
        near, _ = self._listener.accept()
        far = socket.create_connection(("127.0.0.1", self._target_port))
        self._sockets = [near, far]
        for source, sink in ((near, far), (far, near)):
            threading.Thread(target=self._forward, args=(source, sink), daemon=True).start()

    def _forward(self, source: socket.socket, sink: socket.socket) -> None:
        while data := source.recv(65536):
            if self._frozen.is_set():
                return
            sink.sendall(data)

    def freeze(self) -> None:
        self._frozen.set()

    def __exit__(self, *_: object) -> None:
        for opened in (self._listener, *self._sockets):
            opened.close()


def test_health_and_waiting_for_it(double: ProtocolDouble, client: Client) -> None:
    assert client.health().ready
    double.model_ready = False
    health = client.health()
    assert (health.server, health.model, health.ready) == (True, False, False)
    assert "no model vita_audio" in health.reason
    with pytest.raises(ServerUnavailable, match=r"not ready within 0\.2 s"):
        client.wait_ready(0.2)
    threading.Timer(0.2, lambda: setattr(double, "model_ready", True)).start()
    assert client.wait_ready(5).ready


def test_closing_the_client_ends_its_streams(double: ProtocolDouble) -> None:
    client = Client(double.url)
    stream = client.stream("stall")
    next(stream)
    threading.Timer(0.1, client.close).start()
    with pytest.raises(StreamCancelled):
        list(stream)
    assert double.cancelled.wait(5)
    with pytest.raises(ClientClosed):
        client.stream("chunks 1")
    with pytest.raises(ClientClosed):
        client.health()


def test_a_response_over_the_size_limit(double: ProtocolDouble) -> None:
    connection = Connection(double.url, max_message_bytes=CHUNK_SAMPLES)
    with Client(connection=connection) as client, pytest.raises(GenerationFailed, match="larger than max"):
        client.collect("chunks 1")


@pytest.mark.parametrize("url", ["", "http://localhost:8001", "local host:1"])
def test_bad_addresses(url: str) -> None:
    with pytest.raises(InvalidRequest, match="host:port"):
        Client(url)
