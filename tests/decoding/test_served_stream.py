"""One stream's clocks and counts: how long its listener can still hear, when it was last seen, what a status says."""

from __future__ import annotations

import numpy as np
import pytest

from decoding_bench import AUDIO, DetokenizerDouble, VocabularyDouble, audio
from decoding_doubles import FlowDouble, VocoderDouble
from vita_audio.contract.errors import BadMessage, EngineError
from vita_audio.contract.messages import State, Status
from vita_audio.decoding.decoder import StreamingDecoder
from vita_audio.decoding.served_stream import FIRST_SOUND_S, DecodedChunk, Ending, Request, ServedStream

RATE_HZ = 22_050


class Served:
    """A stream whose messages come, and are answered, at times that a test says."""

    def __init__(self, submitted: float = 0.0) -> None:
        self.decoder = StreamingDecoder(FlowDouble(), VocoderDouble())
        self.stream = ServedStream("s", self.decoder.init(0), DetokenizerDouble(), submitted)
        self.messages = 0

    def message(self, tokens: list[int], at: float, state: State = "running", index: int | None = None) -> None:
        status = Status("s", self.messages if index is None else index, state, timings_ms={"lm": 1.5})
        self.messages += 1
        self.stream.requests.append(Request(status, tokens, lambda chunk: None, lambda: False, at))
        self.stream.begin(self.decoder, VocabularyDouble())

    def answer(self, samples: int, at: float, decode_ms: float = 0.0, complete: bool = True) -> DecodedChunk:
        if samples:
            self.stream.add(np.ones(samples, np.int16), decode_ms)
        chunk = self.stream.answer(at, complete)
        if complete:
            self.stream.requests.popleft()
        return chunk


def test_the_time_left_shrinks_as_time_passes_and_grows_with_sound() -> None:
    served = Served()
    assert served.stream.time_left_s(7.0) == FIRST_SOUND_S  # nothing to hear has come: no clock runs
    served.message([104], at=10.0)
    served.answer(0, at=11.0)
    assert served.stream.time_left_s(12.0) == FIRST_SOUND_S
    served.message(audio(8), at=20.0)
    assert served.stream.time_left_s(20.0) == FIRST_SOUND_S
    assert served.stream.time_left_s(20.25) == pytest.approx(FIRST_SOUND_S - 0.25)
    served.answer(RATE_HZ, at=30.0)  # a second of sound, heard from now on
    assert served.stream.time_left_s(30.0) == 1.0
    assert served.stream.time_left_s(30.75) == 0.25
    served.message(audio(8, 8), at=40.0)
    assert served.stream.time_left_s(40.0) == -9.0
    served.answer(2 * RATE_HZ, at=41.0)  # the clock goes on from the first sound
    assert served.stream.time_left_s(42.0) == 3.0 - 12.0


def test_the_clock_begins_with_the_first_audio_token_and_not_with_a_later_one() -> None:
    served = Served()
    served.message(audio(1), at=5.0)
    served.answer(0, at=5.5)
    served.message(audio(1, 1), at=6.0)
    assert served.stream.time_left_s(6.0) == pytest.approx(FIRST_SOUND_S - 1.0)


def test_a_stream_is_seen_when_it_is_answered() -> None:
    served = Served(submitted=1.0)
    assert served.stream.last_seen == 1.0
    served.message(audio(8), at=2.0)
    served.answer(100, at=50.0, complete=False)
    assert served.stream.last_seen == 50.0
    served.answer(0, at=61.0)
    assert served.stream.last_seen == 61.0


def test_timings_are_sums_over_the_stream_in_ms() -> None:
    """The queue's time is what a message took beyond its decodes."""
    served = Served()
    served.message(audio(20), at=1.0)
    first = served.answer(10, at=1.5, decode_ms=100.0, complete=False)
    assert first.status.timings_ms == {"lm": 1.5, "decode_queue": 400.0, "decode": 100.0}
    second = served.answer(10, at=2.0, decode_ms=50.0)
    assert second.status.timings_ms == {"lm": 1.5, "decode_queue": 850.0, "decode": 150.0}
    served.message(audio(20, 20), at=3.0)
    third = served.answer(10, at=3.25, decode_ms=25.0)
    assert third.status.timings_ms == {"lm": 1.5, "decode_queue": 850.0 + 225.0, "decode": 175.0}
    assert [chunk.status.index for chunk in (first, second, third)] == [0, 1, 2]
    assert [chunk.complete for chunk in (first, second, third)] == [False, True, True]
    assert served.stream.samples == 30


def test_only_the_complete_answer_has_the_state_of_the_message() -> None:
    served = Served()
    served.message([104, *audio(20)], at=1.0, state="done")
    part = served.answer(10, at=1.0, complete=False)
    assert (part.status.state, part.text, len(part.tokens)) == ("running", "h", 21)
    last = served.answer(5, at=1.0)
    assert (last.status.state, last.text, len(last.tokens), len(last.pcm)) == ("done", "", 0, 5)
    assert not served.stream.begun


def test_sound_is_what_was_made_and_not_sent() -> None:
    served = Served()
    served.message(audio(20), at=1.0)
    assert not served.stream.has_sound
    served.stream.add(np.zeros(0, np.int16), 1.0)
    assert not served.stream.has_sound
    served.stream.add(np.zeros(1, np.int16), 1.0)
    assert served.stream.has_sound
    assert len(served.answer(0, at=1.0, complete=False).pcm) == 1
    assert not served.stream.has_sound


@pytest.mark.parametrize(("state", "fed", "ended"), [("running", 2, False), ("done", 2, True), ("failed", 0, False)])
def test_what_the_language_model_broke_off_is_not_spoken(state: State, fed: int, ended: bool) -> None:
    served = Served()
    served.message([104, AUDIO, 300, AUDIO + 1], at=1.0, state=state)
    assert (len(served.stream.audio.codes), served.stream.audio.ended) == (fed, ended)
    assert served.stream.text == ("" if state == "running" else "h")  # the stand-in keeps a letter until the end


def test_a_message_out_of_turn_is_refused() -> None:
    served = Served()
    served.message([], at=1.0)
    served.answer(0, at=1.0)
    with pytest.raises(BadMessage, match="message 2 came when 1 was due"):
        served.message([], at=1.0, index=2)


def test_a_failure_is_one_line_with_a_code() -> None:
    assert Ending.of(EngineError("the mel is broken\nat a place\n")) == Ending(
        "failed", "audio decoding failed: EngineError: the mel is broken", "engine_error"
    )
    assert Ending.of(ValueError()) == Ending("failed", "audio decoding failed: ValueError", "internal_error")
    request = Request(Status("s", 4, "running", task="tts"), [1], lambda chunk: None, lambda: False, 0.0)
    chunk = request.empty(Ending("failed", "why", "code"), index=9)
    assert (chunk.status.index, chunk.status.state, chunk.status.reason, chunk.status.code) == (
        9,
        "failed",
        "why",
        "code",
    )
    assert (chunk.status.task, chunk.complete, chunk.text, len(chunk.tokens), len(chunk.pcm)) == ("tts", True, "", 0, 0)
    assert request.empty(Ending("cancelled")).status.index == 4
