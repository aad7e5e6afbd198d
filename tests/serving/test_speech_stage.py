"""The stage `speech`: both workers in one process, and one answer to each request, whichever of them it comes from."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

import pytest

from decoding_bench import DetokenizerDouble, GatedFlow, VocabularyDouble
from decoding_doubles import EVERY_20, VocoderDouble
from language_models import request
from serving import speech_stage
from serving.audio_decoder_stage import AudioDecoderStage
from serving.speech_stage import SpeechStage
from speech_lm_bench import Bench
from vita_audio.contract.errors import BadMessage, ServerFull
from vita_audio.contract.messages import Cancel, Delta, Message, Ping, Probe, Released, Start, Status
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.served_stream import DecodedChunk
from vita_audio.decoding.service import DecodingService
from waiting import until


class Answer:
    """What one request was answered; nothing may come after the last."""

    def __init__(self) -> None:
        self.sent: list[DecodedChunk | Probe | None] = []
        self.over = False

    def __call__(self, content: DecodedChunk | Probe | None, last: bool) -> None:
        assert not self.over
        self.over = last
        self.sent.append(content)

    @property
    def chunks(self) -> list[DecodedChunk]:
        return [content for content in self.sent if isinstance(content, DecodedChunk)]

    @property
    def stream(self) -> str:
        until(lambda: self.sent)
        first = self.sent[0]
        assert first is not None
        return first.stream if isinstance(first, Probe) else first.status.stream


class Speech:
    """The stage on doubles that a test can hold back."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.language_model, self.flow = Bench(slots=2, queue=0), GatedFlow()
        self.decoding = DecodingService(
            StreamingDecoder(self.flow, VocoderDouble(), EVERY_20, streams=16),
            VocabularyDouble(),
            DetokenizerDouble,
            lambda message: self.language_model.stage.accept(message, lambda *answer: None),
            max_batch=1,
            enter=lambda: self.entered.append(threading.current_thread().name),
        )
        decoder = AudioDecoderStage(self.decoding, recorder=self.language_model.stage.recorder)
        self.stage = SpeechStage(self.language_model.stage, decoder, self.language_model.stage.recorder)

    def start(self, tokens: int = 40) -> Answer:
        answer, generation = Answer(), request([5] * 3, (8192, 0), tokens)
        self.stage.accept(Start(generation.settings, generation.prompt), answer)
        return answer


@pytest.fixture
def speech() -> Iterator[Speech]:
    made = Speech()
    yield made
    made.language_model.engine.gate.set()
    made.flow.open.set()
    made.stage.close()


def test_a_stream_ends_with_its_last_sound_and_leaves_nothing(speech: Speech) -> None:
    answers = [speech.start(), speech.start()]
    until(lambda: all(answer.over for answer in answers))
    for answer in answers:
        assert [chunk.status.state for chunk in answer.chunks[:-1]] == ["running"] * (len(answer.chunks) - 1)
        assert isinstance(answer.sent[-1], DecodedChunk)  # the final flag comes with it
        assert answer.sent[-1].status.state == "done"
        assert sum(len(chunk.tokens) for chunk in answer.chunks) == 40
    until(lambda: speech.language_model.load.taken == 0)
    assert speech.decoding.stats().live_streams == 0
    assert speech.entered == ["decoding"]  # on the thread that is to use the engines


def test_a_stream_that_has_nothing_to_send_sends_probes(speech: Speech) -> None:
    speech.language_model.engine.gate.clear()
    answer = speech.start()
    until(lambda: len(answer.sent) >= 2)
    assert set(answer.sent) == {Probe(answer.stream)}
    speech.language_model.engine.gate.set()
    until(lambda: answer.over)
    assert answer.chunks[-1].status.state == "done"


def test_a_cancel_ends_both_halves_of_a_stream(speech: Speech) -> None:
    speech.language_model.engine.gate.clear()
    answer, other = speech.start(), speech.start()
    cancel = Answer()
    speech.stage.accept(Cancel(answer.stream), cancel)
    assert (cancel.sent, cancel.over) == ([None], True)
    until(lambda: speech.language_model.load.taken == 1)
    speech.language_model.engine.gate.set()
    until(lambda: answer.over and other.over)
    assert answer.chunks[-1].status.state == "cancelled"
    assert other.chunks[-1].status.state == "done"
    until(lambda: speech.decoding.stats().live_streams == speech.language_model.load.taken == 0)


def test_a_full_server_refuses_and_answers_nothing(speech: Speech) -> None:
    speech.language_model.engine.gate.clear()
    speech.start(), speech.start()
    with pytest.raises(ServerFull):
        speech.start()


def test_a_decoder_that_fails_ends_the_stream_with_a_reason(speech: Speech, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech.decoding, "_decoder", None)
    answer = speech.start()
    until(lambda: answer.over)
    assert answer.chunks[0].status.state == "failed"
    assert "audio decoding failed" in answer.chunks[0].status.reason
    until(lambda: speech.language_model.load.taken == 0)


def test_a_ping_is_answered_once_both_loops_turn(speech: Speech) -> None:
    speech.flow.open.clear()
    speech.decoding.submit(Delta(Status("held", 0, "done"), [1000] * 20), lambda chunk: None)
    until(speech.flow.entered.is_set)
    answer = Answer()
    speech.stage.accept(Ping(), answer)
    threading.Event().wait(0.1)
    assert answer.sent == []
    speech.flow.open.set()
    until(lambda: answer.over)
    assert answer.sent == [None]


@pytest.mark.parametrize("message", [Released("s1"), Probe("s1"), Delta(Status("s1", 0, "running"), [1])])
def test_messages_that_stay_inside_are_not_taken(speech: Speech, message: Message) -> None:
    with pytest.raises(BadMessage, match=f"^kind: speech takes no {type(message).__name__}"):
        speech.stage.accept(message, Answer())


def test_the_decoder_is_opened_first_and_one_recorder_has_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU the process of the language model is made to yield as it opens: threads made before do not."""
    opened: list[object] = []
    notify: list[Callable] = []

    class Half:
        refusals, most_rows_bytes = None, 0

        def accept(self, message: Message, send: Callable[[None, bool], None]) -> None:
            send(None, True)
            opened.append(message)

    def decoder(worker: str, tell: Callable, heartbeats: object, recorder: object) -> Half:
        opened.append("decoder")
        notify.append(tell)
        recorders.append(recorder)
        return Half()

    def language_model(worker: str, heartbeats: object, recorder: object) -> Half:
        opened.append("language model")
        recorders.append(recorder)
        return Half()

    recorders: list[object] = []
    monkeypatch.setattr(speech_stage.AudioDecoderStage, "serve", decoder)
    monkeypatch.setattr(speech_stage.SpeechLmStage, "serve", language_model)
    stage = SpeechStage.serve("speech_0_0", None)  # type: ignore[arg-type]
    notify[0](Cancel("s1"))
    assert opened == ["decoder", "language model", Cancel("s1")]
    assert recorders == [stage.recorder, stage.recorder]
