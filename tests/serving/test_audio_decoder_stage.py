"""The stage `audio_decoder` without Triton: probes, messages that are none, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from served_engines_double import BATCH, END_TOKENS, QUEUE, SLOTS, NamedHeartbeats, serve_with_doubles
from serving import audio_decoder_stage
from serving.audio_decoder_stage import AudioDecoderStage
from vita_audio.contract.messages import Cancel, Delta, Message, Probe, Released, Status, decode
from vita_audio.decoding.served_stream import DecodedChunk
from vita_audio.decoding.service import DecodingService, DecodingStats
from vita_audio.pulse import Pulse


class ServiceDouble:
    """Notes what the stage asks of the service."""

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.submitted: list[tuple[Delta, Callable[[DecodedChunk], None], Callable[[], bool]]] = []

    def cancel(self, stream: str) -> None:
        self.cancelled.append(stream)

    def submit(self, delta: Delta, reply: Callable[[DecodedChunk], None], cancelled: Callable[[], bool]) -> None:
        self.submitted.append((delta, reply, cancelled))


def accept(
    message: Message | Callable[[], Message], gone: bool = False
) -> tuple[ServiceDouble, list, AudioDecoderStage]:
    service = ServiceDouble()
    answers: list[DecodedChunk | None] = []
    stage = AudioDecoderStage(service)  # type: ignore[arg-type]
    stage.accept(message if callable(message) else lambda: message, answers.append, lambda: gone)
    return service, answers, stage


def test_a_probe_is_answered_without_content_and_cancels_when_the_client_is_gone() -> None:
    for gone in (False, True):
        service, answers, _ = accept(Probe("a"), gone)
        assert answers == [None]
        assert service.cancelled == ["a"] * gone
        assert service.submitted == []


def test_a_delta_is_decoded_and_its_answer_measured() -> None:
    delta = Delta(Status("a", 0, "running", task="tts", mode="boost"), [1, 2])
    service, answers, stage = accept(delta)
    assert answers == []
    (submitted, reply, cancelled) = service.submitted[0]
    assert submitted is delta
    assert not cancelled()
    chunk = DecodedChunk.empty(delta.status)
    reply(chunk)
    assert answers == [chunk]
    reply(DecodedChunk.empty(Status("a", 1, "done", task="tts", mode="boost", timings_ms={"decode_queue": 5.0})))
    assert dict(stage.recorder.take().observations) == {("vita_queue_ms", ("audio_decoder",)): 5.0}


def test_what_is_no_message_of_speech_lm_is_answered_in_band() -> None:
    for message in (lambda: decode("{}"), Cancel("a"), Released("a")):
        service, answers, _ = accept(message)
        assert [(a.status.state, a.status.code, a.complete, len(a.pcm)) for a in answers] == [
            ("failed", "bad_message", True, 0)
        ]
        assert answers[0].status.reason.startswith("audio decoding failed: BadMessage: ")
        assert service.submitted == []


def test_a_stream_without_a_delta_is_cancelled_too() -> None:
    from decoding_doubles import EVERY_20, FlowDouble, VocoderDouble
    from vita_audio.decoding.decoder import StreamingDecoder

    sent: list[Cancel | Released] = []
    service = DecodingService(
        StreamingDecoder(FlowDouble(), VocoderDouble(), EVERY_20),
        None,  # type: ignore[arg-type]
        None,  # type: ignore[arg-type]
        sent.append,
    )
    stage = AudioDecoderStage(service)
    answers: list[DecodedChunk | None] = []
    stage.accept(lambda: Probe("queued"), answers.append, lambda: True)
    end = time.monotonic() + 5
    while not sent and time.monotonic() < end:
        time.sleep(0.001)
    assert sent == [Cancel("queued")]
    assert answers == [None]
    stage.measure()
    stage.close()


def test_what_is_refused_is_counted_and_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    _, _, stage = accept(lambda: decode("{}"))
    counted = stage.recorder.take().counters
    assert counted["vita_requests_refused_total", ("audio_decoder", "bad_message", "")] == 1
    assert [record.exc_info for record in caplog.records] == [False]
    caplog.clear()

    def broken() -> Message:
        raise KeyError("not on purpose")

    accept(broken)
    assert [type(record.exc_info[1]) for record in caplog.records if record.exc_info] == [KeyError]


def test_the_client_of_a_delta_is_asked_later() -> None:
    gone = False
    service = ServiceDouble()
    stage = AudioDecoderStage(service)  # type: ignore[arg-type]
    stage.accept(lambda: Delta(Status("a", 0, "running"), []), lambda _: None, lambda: gone)
    gone = True
    assert service.submitted[0][2]()


def test_samples_and_text_of_an_answer_are_measured_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    delta = Delta(Status("a", 0, "running", task="tts", mode="boost"), [1, 2])
    service, _, stage = accept(delta)
    measured: list[tuple] = []
    monkeypatch.setattr(stage._meter, "chunk", lambda *values: measured.append(values[:3]))
    ids, sound = np.zeros(3, np.int32), np.zeros(5, np.int16)
    for text, pcm in (("", sound), ("hi", sound[:0])):
        service.submitted[0][1](DecodedChunk(text, ids, pcm, delta.status))
    assert measured == [(delta.status, 5, False), (delta.status, 0, True)]


def test_the_metrics_are_their_own() -> None:
    service = ServiceDouble()
    stats = DecodingStats(3, 5, {2: 7, 4: 11}, 13.0, {"done": 17}, 19, 23, 29)
    service.stats = lambda: stats  # type: ignore[attr-defined]
    stage, name = AudioDecoderStage(service, "audio_decoder_0"), "audio_decoder"  # type: ignore[arg-type]
    stage.measure()
    changes = stage.recorder.take()
    assert changes.gauges == {
        ("vita_streams", (name, "running", "audio_decoder_0")): 3,
        ("vita_decoder_waiting_requests", ()): 5,
    }
    assert {key: value for key, value in changes.counters.items() if value} == {
        ("vita_busy_ms_total", (name,)): 13.0,
        ("vita_decoder_faults_total", ("stop",)): 23,
        ("vita_decoder_faults_total", ("reply",)): 29,
        ("vita_decoder_batches_total", ("2",)): 7,
        ("vita_decoder_batches_total", ("4",)): 11,
        ("vita_streams_ended_total", (name, "done")): 17,
    }


def test_a_stage_is_what_the_settings_of_its_server_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = serve_with_doubles(audio_decoder_stage, monkeypatch, tmp_path)
    called: dict[str, tuple] = {}

    class Decoder:
        def __init__(self, *engines: str, streams: int) -> None:
            called["decoder"], called["streams"] = engines, (streams,)

        def warm_up(self, *batch: int, **_: object) -> None:
            called["warm_up"] = batch

    class Service:
        def __init__(self, *arguments: object, max_streams: int, enter: Callable[[], None], **pulses: Pulse) -> None:
            called["service"], called["max_streams"] = arguments, (max_streams,)
            enter()
            called["pulses"] = (pulses["pulse"], pulses["notifier_pulse"])

    entered: list[tuple[str, bool]] = []

    def share(settings: object, given: object, model: str, alone: bool) -> Callable[[], None]:
        return lambda: entered.append((model, alone))

    monkeypatch.setattr(audio_decoder_stage, "share_gpu", share)

    def opened(given: object) -> tuple[str, str, str]:
        assert given is source
        assert entered == [("audio_decoder", True)]
        return "flow", "vocoder", "schedule"

    def notify(message: Cancel | Released) -> None: ...

    tokenizer = SimpleNamespace(detokenizer=object())
    monkeypatch.setattr(audio_decoder_stage, "open_audio_decoder", opened)
    monkeypatch.setattr(audio_decoder_stage, "StreamingDecoder", Decoder)
    monkeypatch.setattr(audio_decoder_stage, "TextTokenizer", lambda path: tokenizer)
    monkeypatch.setattr(audio_decoder_stage, "DecodingService", Service)
    heartbeats = NamedHeartbeats()
    AudioDecoderStage.serve("audio_decoder_0", notify, heartbeats)
    assert called["pulses"] == (heartbeats.pulses["decoding"], heartbeats.pulses["notifier"])
    assert entered == [("audio_decoder", True)] * 2  # where they are opened, and on the service's thread
    assert called["decoder"] == ("flow", "vocoder", "schedule")
    assert called["warm_up"] == (BATCH,)
    decoder, vocabulary, *others = called["service"]
    assert isinstance(decoder, Decoder)
    assert vocabulary.end_tokens == END_TOKENS
    assert others == [tokenizer.detokenizer, notify, BATCH]
    assert called["max_streams"] == (2 * (SLOTS + QUEUE),)
    assert called["streams"] == (2 * (SLOTS + QUEUE) + audio_decoder_stage.ENDING_STREAMS,)
