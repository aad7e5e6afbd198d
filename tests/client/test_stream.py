"""Streams of both clients against a protocol double: what is sent, the events that come back, the measured times."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import vita_client.base
from client_protocol_double import ProtocolDouble, chunk_pcm, chunk_text
from vita_audio.contract.rates import INPUT_SAMPLE_RATE_HZ
from vita_client import (
    DeadlineExceeded,
    InvalidRequest,
    Pcm,
    StatusUpdate,
    TextDelta,
    TokensDelta,
    build_request,
)
from vita_client.events import Metrics


def test_events_come_in_order_and_outputs_are_found_by_name(client: Any) -> None:
    with client.stream("chunks 4", seed=3) as stream:
        assert stream.status is None
        events = list(stream)
    assert [type(event) for event in events] == [TextDelta, TokensDelta, Pcm, StatusUpdate] * 4
    assert [event.text for event in events if isinstance(event, TextDelta)] == [chunk_text(3, i) for i in range(4)]
    assert [event.ids for event in events if isinstance(event, TokensDelta)] == [(3, i) for i in range(4)]
    sounds = [event for event in events if isinstance(event, Pcm)]
    for index, sound in enumerate(sounds):
        assert sound.samples.dtype == np.int16
        np.testing.assert_array_equal(sound.samples, chunk_pcm(3, index))
        assert (sound.sample_rate_hz, sound.seconds) == (22_050, 0.1)
    states = [event.status.state for event in events if isinstance(event, StatusUpdate)]
    assert states == ["running"] * 3 + ["done"]
    assert (stream.status.reason, stream.status.seed, stream.cancelled) == ("end_token", 3, False)
    assert list(stream) == []


def test_collect_joins_everything_or_what_is_left(client: Any) -> None:
    reply = client.collect("chunks 5", seed=1)
    assert reply.text == "".join(chunk_text(1, i) for i in range(5))
    assert reply.tokens == tuple(number for i in range(5) for number in (1, i))
    np.testing.assert_array_equal(reply.pcm, np.concatenate([chunk_pcm(1, i) for i in range(5)]))
    assert (reply.status.state, reply.status.index, reply.sample_rate_hz) == ("done", 4, 22_050)
    stream = client.stream("chunks 2", seed=1)
    assert next(stream) == TextDelta(chunk_text(1, 0))
    rest = stream.collect()
    assert (rest.text, rest.tokens) == (chunk_text(1, 1), (1, 0, 1, 1))


def test_a_reply_without_sound_is_empty(client: Any) -> None:
    reply = client.collect("ends done - end_token")
    assert (reply.text, reply.tokens, reply.pcm.shape, reply.pcm.dtype) == ("", (), (0,), np.int16)
    metrics = reply.metrics
    assert (metrics.responses, metrics.tokens, metrics.audio_s) == (1, 0, 0)
    assert (metrics.ttfa_ms, metrics.first_text_ms, metrics.last_audio_ms) == (None, None, None)
    assert (metrics.real_time_factor, metrics.tokens_per_s) == (None, None)


def test_times_count_from_the_request(client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that moves on by 10 ms each time it is read: at the request, at each message, at the end."""
    ticks = count(100_000)
    monkeypatch.setattr(vita_client.base, "time", SimpleNamespace(perf_counter=lambda: next(ticks) / 100))
    with client.stream("chunks 2") as stream:
        next(stream)
        assert stream.metrics.elapsed_ms == pytest.approx(20)  # running: the clock is read for it
        rest = stream.collect()
    assert rest.metrics == stream.metrics
    expected = Metrics(50, first_text_ms=10, ttfa_ms=10, last_audio_ms=30, responses=2, tokens=4, audio_s=0.2)
    for name in Metrics.__dataclass_fields__:
        assert getattr(rest.metrics, name) == pytest.approx(getattr(expected, name)), name
    assert rest.metrics.real_time_factor == pytest.approx(0.03 / 0.2)
    assert rest.metrics.tokens_per_s == pytest.approx(4 / 0.05)


def test_real_time_is_what_the_clock_shows(client: Any) -> None:
    metrics = client.collect("chunks 4 0.05").metrics
    assert metrics.last_audio_ms - metrics.ttfa_ms >= 140  # three pauses of 50 ms between four chunks
    assert metrics.elapsed_ms >= metrics.last_audio_ms + 40  # one more before the end


def test_only_given_fields_are_sent(double: ProtocolDouble, client: Any) -> None:
    client.collect("chunks 1")
    assert double.inputs[0] == {"TEXT": "chunks 1", "TASK": "chat"}
    fields = {
        "task": "tts",
        "mode": "1,4,2,5",
        "max_tokens": 9,
        "temperature": 0.5,
        "top_k": 7,
        "top_p": 0.25,
        "repetition_penalty": 1.5,
        "seed": 2**63,
    }
    client.collect("chunks 1", **fields)
    client.stream("chunks 1", **fields).collect()
    expected = {"TEXT": "chunks 1", **{name.upper(): value for name, value in fields.items()}}
    assert double.inputs[1:] == [expected, expected]
    assert {request.model_name for request in double.requests} == {"vita_audio"}


def test_speech_is_sent_at_16_khz(double: ProtocolDouble, client: Any) -> None:
    client.collect(audio=np.zeros((8000, 2), np.int16), sample_rate=8000, task="asr")
    sent = double.inputs[0]
    assert (sent.get("SAMPLE_RATE", INPUT_SAMPLE_RATE_HZ), sent["TASK"]) == (16_000, "asr")
    assert np.shape(sent["AUDIO"]) == (16_000,)


def test_one_request_may_be_sent_many_times(double: ProtocolDouble, client: Any) -> None:
    request = build_request("chunks 2", seed=4)
    texts = [client.send(request).collect().text for _ in range(3)]
    assert texts == [chunk_text(4, 0) + chunk_text(4, 1)] * 3
    assert len({sent.id for sent in double.requests}) == 3
    assert "" not in {sent.id for sent in double.requests}


def test_bad_input_is_refused_before_sending(double: ProtocolDouble, client: Any) -> None:
    for call in (client.collect, client.stream):
        with pytest.raises(InvalidRequest, match="TOP_P"):
            call("hello", top_p=2.0)
    assert double.headers == []


def test_streams_of_several_threads_do_not_mix(client: Any) -> None:
    barrier = threading.Barrier(8)

    def text(seed: int) -> str:
        barrier.wait(20)
        return client.collect("chunks 6 0.01", seed=seed).text

    with ThreadPoolExecutor(8) as threads:
        texts = list(threads.map(text, range(8)))
    assert texts == ["".join(chunk_text(seed, i) for i in range(6)) for seed in range(8)]


def test_streams_read_in_turns_by_one_thread(client: Any) -> None:
    streams = [client.stream("chunks 3", seed=seed) for seed in range(4)]
    heard: dict[int, str] = dict.fromkeys(range(4), "")
    for events in zip(*streams, strict=True):
        for seed, event in enumerate(events):
            heard[seed] += event.text if isinstance(event, TextDelta) else ""
    assert heard == {seed: "".join(chunk_text(seed, i) for i in range(3)) for seed in range(4)}


@pytest.mark.parametrize("script", ["hang", "stall"])
def test_a_server_that_never_answers_meets_the_deadline(double: ProtocolDouble, client: Any, script: str) -> None:
    came = int(script == "stall")
    with pytest.raises(DeadlineExceeded, match=rf"within 0\.3 s \({came} responses had come\)") as caught:
        client.collect(script, timeout_s=0.3)
    assert caught.value.code == "deadline_exceeded"
    assert double.cancelled.wait(5)


def test_the_deadline_travels_to_the_server(double: ProtocolDouble, client: Any) -> None:
    client.collect("chunks 1", timeout_s=40)
    client.stream("chunks 1", timeout_s=60).collect()
    client.send(build_request("chunks 1"), timeout_s=80).collect()
    client.collect("chunks 1")
    client.stream("chunks 1").collect()
    client.send(build_request("chunks 1")).collect()
    for left_s, timeout_s in zip(double.deadlines_s, (40, 60, 80, 120, 120, 120), strict=True):
        assert timeout_s - 15 < left_s < timeout_s + 1  # gRPC rounds up


@pytest.mark.parametrize("timeout_s", [0, -1, 86_401, float("nan"), float("inf"), None, True, "9"])
def test_there_is_always_a_deadline(double: ProtocolDouble, client: Any, timeout_s: Any) -> None:
    for call in (client.stream, client.collect):
        with pytest.raises(InvalidRequest, match="timeout_s"):
            call("chunks 1", timeout_s=timeout_s)
    with pytest.raises(InvalidRequest, match="timeout_s"):
        client.wait_ready(timeout_s)
    assert double.headers == double.asked == []
