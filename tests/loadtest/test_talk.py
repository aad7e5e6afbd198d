"""Users who hold a conversation: what is sent with each turn, when it is sent, and what is counted of it."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import gevent
import numpy as np
import pytest

import loadtest.talk
from client_protocol_double import ProtocolDouble
from loadtest.clock import now_s
from loadtest.dispatcher import Dispatcher
from loadtest.options import Settings
from loadtest.record import StreamRecord
from loadtest.report.page import page
from loadtest.report.summary import Run, summary
from loadtest.talk import Talk
from loadtest.tally import LAST_TURN, Tally
from loadtest.workload import CONVERSATION, UserProfile, UserRequest, UserTalk, Workload
from loadtest_runs import Known, ended, load
from vita_client import Client, Conversation, build_request

VOICE = [np.full(8_000, 0.1, np.float32)]


def turn(number: int, seconds: float = 0.4, barge_in_s: float | None = None) -> UserRequest:
    speech = np.full(round(seconds * 16_000), 0.1 * number, np.float32)
    request = build_request(audio=speech, task="chat", max_tokens=50 + number, seed=number)
    return UserRequest(CONVERSATION, request, number, barge_in_s)


@pytest.fixture
def double() -> Iterator[ProtocolDouble]:
    server = ProtocolDouble()
    server.spoken = "turn 3"
    yield server
    server.close()


def held(double: ProtocolDouble, talk: UserTalk) -> tuple[list[StreamRecord], Tally]:
    """A conversation with the double, to its end."""
    streams, tally, begin_s = list[StreamRecord](), Tally(), now_s()
    with Client(double.url) as client:
        dispatcher = Dispatcher(client, Settings(double.url), begin_s, tally, lambda one, _: streams.append(one))
        greenlet = dispatcher.launch(talk, begin_s)
        assert greenlet is not None
        greenlet.get(timeout=60)
    return streams, tally


def test_each_turn_goes_on_from_the_last_and_is_sent_when_it_was_spoken(double: ProtocolDouble) -> None:
    begin_s = now_s()
    streams, tally = held(double, UserTalk((turn(1), turn(2), turn(3)), (0.3, 0.3, 0.3)))
    assert [np.asarray(inputs.get("HISTORY", ())).tolist() for inputs in double.inputs] == [
        [],
        [1000, 0, 1, 2],
        [1000, 0, 1, 2, 1001, 0, 1, 2],
    ]
    for number, inputs in enumerate(double.inputs, 1):
        assert (inputs["MAX_TOKENS"], inputs["SEED"]) == (50 + number, number)
        assert np.asarray(inputs["AUDIO"]).size == 6400
        assert np.allclose(np.asarray(inputs["AUDIO"]), 0.1 * number)
    assert [stream.turn for stream in streams] == [1, 2, 3]
    assert {stream.scenario for stream in streams} == {CONVERSATION}
    # Spoken for 0.4 s, an answer of 0.3 s that is listened to, 0.3 s of thinking.
    starts = [stream.start_s for stream in streams]
    assert starts[0] == pytest.approx(0.4)
    assert all(late - early >= 0.95 for early, late in pairwise(starts))
    assert now_s() - begin_s >= 2.4
    assert tally.total().streams == 3


class Room:
    """A client, its conversation and the user's waits, with a clock: appending takes as long as `blocks_s` say."""

    def __init__(self, now_s: float = 0.0, late_s: float = 0.0, blocks_s: Sequence[float] = ()) -> None:
        self.now_s, self.late_s, self.blocks_s = now_s, late_s, list(blocks_s)
        self.history, self.heard_s = (1,), list[float]()

    def conversation(self, timeout_s: float) -> Room:
        return self

    def append_audio(self, samples: object) -> None:
        self.now_s += self.blocks_s.pop(0)

    def heard(self, seconds: float) -> None:
        self.heard_s.append(seconds)

    def wait(self, timeout: float) -> bool:
        self.now_s += timeout + self.late_s
        return False


@pytest.mark.parametrize(
    ("now_s", "blocks_s", "spoken_s"),
    [
        (0.0, (0.0, 0.0), 0.51),
        (0.0, (1.0, 0.0), 0.51),  # the server's slowness is not the caller's
        (1.0, (0.0, 0.0), 1.02),  # the generator's own lateness is
        (1.0, (1.0, 0.0), 1.02),
    ],
)
def test_a_caller_has_finished_speaking_whether_or_not_the_server_reads_as_fast(
    now_s: float, blocks_s: Sequence[float], spoken_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    room: Any = Room(now_s, 0.01, blocks_s)
    monkeypatch.setattr(loadtest.talk, "now_s", lambda: room.now_s)
    talk = Talk(room, 60.0, 0.0)
    assert talk.speak(turn(1, seconds=0.5).request, 0.0, room) == pytest.approx((0.5, spoken_s))


def test_what_appending_waits_for_is_in_the_times(double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Conversation, "append_audio", slow_append(Conversation.append_audio, 0.6))
    (stream,), _ = held(double, UserTalk((turn(1, seconds=0.25),), (0.0,)))
    assert stream.first_pcm_ms is not None
    assert stream.first_pcm_ms >= 600 > stream.start_delay_ms


def slow_append(append: Callable[..., None], seconds: float) -> Callable[..., None]:
    def slow(self: Conversation, samples: object) -> None:
        append(self, samples)
        gevent.sleep(seconds)

    return slow


@pytest.mark.parametrize(
    ("barge_in_s", "next_s", "heard_s"),
    [(None, 1.5, []), (2.5, 0.5, [1.5]), (1.5, 0.0, [1.0]), (0.25, 0.0, [0.25])],
)
def test_an_answer_with_a_break_is_listened_to_for_longer(
    barge_in_s: float | None, next_s: float, heard_s: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second of sound, a second of silence, and a second of sound that has just come."""
    room: Any = Room(now_s=100.0)
    monkeypatch.setattr(loadtest.talk, "now_s", lambda: room.now_s)
    lead = ((0.1, 0.0), (0.1, 1.0), (2.1, -1.0), (2.1, 1.0))
    answer = record(1, 100.0, 0, total_ms=2100.0, audio_s=2.0, underruns=1, underrun_s=1.0, lead=lead)
    assert Talk(room, 60.0, 0.0).listen(answer, barge_in_s, think_s=0.5) == pytest.approx(100.0 + next_s)
    assert room.heard_s == pytest.approx(heard_s)


def test_who_cuts_in_speaks_at_once_and_has_heard_no_more(double: ProtocolDouble) -> None:
    double.spoken = "turn 100 0.02"
    streams, _ = held(double, UserTalk((turn(1, barge_in_s=0.5), turn(2, barge_in_s=0.1)), (30.0, 30.0)))
    assert [stream.outcome for stream in streams] == ["interrupted", "interrupted"]
    assert double.inputs[1]["HEARD"] == 6  # 12.5 tokens a second
    assert streams[1].start_s < 10


def test_an_answer_that_was_there_at_once_is_cut_all_the_same(double: ProtocolDouble) -> None:
    double.spoken = "turn 20"  # 2 s of sound
    streams, _ = held(double, UserTalk((turn(1, barge_in_s=0.4), turn(2)), (30.0, 0.0)))
    assert [stream.outcome for stream in streams] == ["done", "done"]
    assert double.inputs[1]["HEARD"] == 5
    assert streams[1].start_s < 10


def test_a_turn_that_fails_ends_the_conversation(double: ProtocolDouble) -> None:
    double.spoken = "message-only [vita:server_full] full"
    streams, _ = held(double, UserTalk((turn(1), turn(2)), (0.0, 0.0)))
    assert [(stream.outcome, stream.turn) for stream in streams] == [("rejected", 1)]


def test_the_end_of_the_run_ends_a_conversation_between_two_turns(double: ProtocolDouble) -> None:
    with Client(double.url) as client:
        streams: list[StreamRecord] = []
        dispatcher = Dispatcher(client, Settings(double.url), now_s(), Tally(), lambda one, _: streams.append(one))
        greenlet = dispatcher.launch(UserTalk((turn(1), turn(2)), (60.0, 0.0)), now_s())
        assert greenlet is not None
        greenlet.join(timeout=1.5)
        begin_s = now_s()
        dispatcher.drain(30.0)
        assert greenlet.ready()
        assert now_s() - begin_s < 10
        assert dispatcher.launch(UserTalk((turn(1),), (0.0,)), now_s()) is None
    assert [stream.turn for stream in streams] == [1]


def test_conversations_are_drawn_as_the_profile_says() -> None:
    profile = UserProfile(mix={CONVERSATION: 1}, barge_in=0.5, slow=1.0)
    talks = [Workload(profile, VOICE, random.Random(number)).draw() for number in range(200)]
    assert all(isinstance(talk, UserTalk) and len(talk.think_s) == len(talk.turns) for talk in talks)
    turns = [one for talk in talks if isinstance(talk, UserTalk) for one in talk.turns]
    assert min(len(talk.turns) for talk in talks if isinstance(talk, UserTalk)) >= 2
    assert 700 < len(turns) < 1600
    assert {one.scenario for one in turns} == {CONVERSATION}
    assert all("AUDIO" in one.request.values and not one.read_delay_s for one in turns)
    cut = sum(one.barge_in_s is not None for one in turns)
    assert cut == pytest.approx(0.5 * len(turns), rel=0.2)


def record(number: int, ttfa_ms: float, cached: int, **changes: Any) -> StreamRecord:
    known = StreamRecord(CONVERSATION, number, 0.0, False, "constant", "done", ttfa_ms=ttfa_ms, first_pcm_ms=ttfa_ms,
                         audio_s=1.0, turn=number, prompt_tokens=100, cached_tokens=cached)  # fmt: skip
    return dataclasses.replace(known, **changes)


def test_the_report_has_ttfa_and_hits_by_turn() -> None:
    tally = Tally()
    for one in (
        record(1, 100.0, 20), record(2, 200.0, 90), record(2, 200.0, 10), record(LAST_TURN, 300.0, 99),
        record(LAST_TURN + 7, 300.0, 99), record(2, 900.0, 90, warm_up=True), record(0, 50.0, 99, scenario="tts"),
    ):  # fmt: skip
        tally.over(one, 1.0, False)
    figures = summary(Run({}, Settings("localhost:1"), tally, {}, 10.0, ""))
    rows = [(each["turn"], each["streams"], each["found_share"], each["reused_share"]) for each in figures["turns"]]
    assert rows == [(1, 1, None, 0.2), (2, 2, 0.5, 0.5), (LAST_TURN, 2, 1.0, 0.99)]
    assert figures["turns"][1]["metrics"]["ttfa"]["p50"] == pytest.approx(200, rel=0.01)
    assert figures["scenarios"][CONVERSATION]["found_share"] == 0.75
    shown = page([figures])
    assert "Turns of conversations" in shown
    assert "10 and later" in shown


def test_a_whole_run_of_conversations(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with Known("even", tmp_path) as server:
        run = load(server.url, out, "--loop", "closed", "--users", "6", "--think", "0.1", "--turns", "3", "--run-time",
                   "9", "--mix", "conversation=1", "--barge-in", "0.3")  # fmt: skip
        _, printed, figures, streams = ended(run, out)
    turns = [stream.turn for stream in streams]
    assert max(turns) >= 2, printed
    assert figures["streams"]["measured"] == len(streams)
    assert [each["turn"] for each in figures["turns"]] == sorted(set(turns))
    assert {stream.outcome for stream in streams} <= {"done", "interrupted", "unfinished"}
    # Later turns came with all that was said before.
    later = [stream for stream in streams if stream.turn > 1]
    assert all(stream.prompt_tokens > stream.cached_tokens > 0 for stream in later)
    assert figures["scenarios"]["all"]["found_share"] == 1.0
