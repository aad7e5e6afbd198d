"""The stage `audio_decoder` without Triton: probes, messages that are none, metrics."""

from __future__ import annotations

import time
from collections.abc import Callable

from serving.audio_decoder_stage import AudioDecoderStage
from vita_audio.contract.messages import Cancel, Delta, Message, Probe, Released, Status, decode
from vita_audio.decoding.served_stream import DecodedChunk
from vita_audio.decoding.service import DecodingService


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
