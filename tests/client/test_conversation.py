"""Conversations, of both clients: what is sent with each turn, what is kept of an answer, what is read ahead."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client_protocol_double import ProtocolDouble
from vita_audio.contract.errors import InvalidRequest
from vita_client import AsyncClient, GenerationFailed, Pcm, PromptIds, ServerUnavailable, TokensDelta
from vita_client.turns import Turns
from waiting import until

SECOND = np.full(16_000, 0.1, np.float32)


def sent(double: ProtocolDouble) -> list[dict[str, Any]]:
    """The fields of every request, arrays as lists or, of speech, seconds."""
    read = []
    for inputs in double.inputs:
        values = dict(inputs)
        if "AUDIO" in values:
            values["AUDIO"] = len(np.asarray(values["AUDIO"])) / 16_000
        if "HISTORY" in values:
            values["HISTORY"] = np.asarray(values["HISTORY"]).tolist()
        read.append(values)
    return read


def test_each_turn_goes_on_from_what_was_received(client: Any, double: ProtocolDouble) -> None:
    talk = client.conversation(system="You are Ada.", mode="turbo", seed=3)
    for _ in range(3):
        reply = talk.respond("turn 2").collect()
        assert talk.history == reply.history
    assert talk.history == (1000, 0, 1, 1001, 0, 1, 1002, 0, 1)
    always = {"TEXT": "turn 2", "MODE": "turbo", "SEED": 3, "TASK": "chat", "HISTORY_OVERFLOW": "drop"}
    assert sent(double) == [
        {**always, "SYSTEM": "You are Ada."},
        {**always, "HISTORY": [1000, 0, 1]},
        {**always, "HISTORY": [1000, 0, 1, 1001, 0, 1]},
    ]


def test_what_was_appended_is_one_turn(client: Any, double: ProtocolDouble) -> None:
    talk = client.conversation()
    talk.append_text("turn")
    talk.append_text("2")
    talk.append_audio(SECOND)
    talk.append_audio((SECOND * 32_767).astype(np.int16))
    assert talk.seconds == 2
    talk.respond(max_tokens=7).collect()
    talk.respond("turn 1").collect()
    first, second = sent(double)
    assert (first["TEXT"], first["AUDIO"], first["MAX_TOKENS"]) == ("turn 2", 2, 7)
    assert (second["TEXT"], "AUDIO" in second, "MAX_TOKENS" in second) == ("turn 1", False, False)


def test_speech_is_read_ahead_block_by_block(client: Any, double: ProtocolDouble) -> None:
    talk = client.conversation(task="chat")
    talk.append_text("turn 2")
    for number in range(10):
        talk.append_audio(SECOND)
        until(lambda blocks=(number + 1 - 0.2) // 4: len(double.inputs) == blocks)
    talk.respond().collect()
    assert [(inputs["AUDIO"], inputs.get("READ_ONLY")) for inputs in sent(double)] == [(5, 1), (9, 1), (10, None)]
    assert talk.history == (1000, 0, 1)
    assert talk.seconds == 0


def test_an_answer_is_asked_for_when_what_is_read_ahead_has_been_read(client: Any, double: ProtocolDouble) -> None:
    """Else its prompt could not go on in the slot that reads."""
    talk = client.conversation()
    talk.append_text("turn 2")
    double.once["turn 2"] = "chunks 4 0.1"
    talk.append_audio(np.tile(SECOND, 5))
    until(lambda: len(double.inputs) == 1)
    talk.respond().collect()
    assert [inputs.get("READ_ONLY") for inputs in sent(double)] == [1, None]
    assert double.at_s[1] - double.at_s[0] > 0.3


def test_reading_ahead_may_fail(client: Any, double: ProtocolDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    talk = client.conversation()
    talk.append_text("message-only [vita:server_full] full")
    talk.append_audio(np.tile(SECOND, 5))
    until(lambda: len(double.inputs) == 1)
    talk.append_audio(np.tile(SECOND, 4))
    with pytest.raises(ServerUnavailable, match="full"):
        talk.respond().collect()


def test_an_interrupted_answer_is_what_came_of_it(client: Any, double: ProtocolDouble) -> None:
    talk = client.conversation()
    with talk.respond("turn 100 0.01") as answer:
        for event in answer:
            if isinstance(event, Pcm):
                break
    assert talk.history == (1000, 0)
    talk.heard(0.1)
    talk.respond("turn 1").collect()
    talk.respond("turn 1").collect()
    _, second, third = sent(double)
    assert (second["HISTORY"], second["HEARD"]) == ([1000, 0], 1)
    assert "HEARD" not in third


def test_a_cancel_ends_the_turn_at_once(client: Any) -> None:
    talk = client.conversation()
    answer = talk.respond("turn 100 0.01")
    next(answer)
    answer.cancel()
    assert talk.respond("turn 1").collect().tokens == (0,)


def test_a_cancelled_answer_that_is_read_on_leaves_the_next_one_alone(client: Any) -> None:
    talk = client.conversation()
    first = talk.respond("turn 50 0.02")
    assert isinstance(next(iter(first)), PromptIds)
    first.cancel()
    second = talk.respond("turn 2")
    assert not list(first)
    reply = second.collect()
    assert talk.history == reply.history


def test_a_turn_that_failed_before_its_answer_is_still_there(client: Any, double: ProtocolDouble) -> None:
    talk = client.conversation()
    talk.append_audio(SECOND)
    with pytest.raises(ServerUnavailable):
        talk.respond("message-only [vita:server_full] full").collect()
    assert talk.history == ()
    assert talk.seconds == 1
    talk.respond("turn 1").collect()
    assert [inputs["AUDIO"] for inputs in sent(double)] == [1, 1]
    assert sent(double)[1]["TEXT"] == "turn 1"


def test_an_answer_that_broke_off_is_kept(client: Any) -> None:
    talk = client.conversation()
    talk.respond("turn 1").collect()
    with pytest.raises(GenerationFailed):
        talk.respond("fail").collect()
    assert talk.history == (1000, 0)  # this server sent no prompt before it failed
    talk.clear()
    assert talk.respond("turn 1").collect().prompt == (1000, 0, 1001)


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (lambda talk: talk.respond("turn 1"), "an answer is still coming"),
        (lambda talk: talk.append_audio(SECOND), "an answer is still coming"),
        (lambda talk: talk.append_text("more"), "an answer is still coming"),
        (lambda talk: talk.heard(1.0), "an answer is still coming"),
    ],
)
def test_nothing_is_added_while_an_answer_is_coming(client: Any, misuse: Callable[[Any], object], words: str) -> None:
    talk = client.conversation()
    with talk.respond("turn 3 0.05") as answer:
        next(answer)
        with pytest.raises(InvalidRequest, match=words):
            misuse(talk)
        answer.collect()
    assert talk.history == (1000, 0, 1, 2)


@pytest.mark.parametrize(
    ("misuse", "words"),
    [
        (lambda talk: talk.respond(), "neither TEXT nor AUDIO"),
        (lambda talk: talk.heard(1.0), "seconds of the last answer"),
        (lambda talk: talk.append_text(" "), "empty or only white space"),
        (lambda talk: talk.append_audio(np.full(10, np.nan, np.float32)), "no sound"),
        (lambda talk: talk.append_audio(np.zeros((2, 2, 2), np.float32)), "shape"),
        (lambda talk: talk.append_audio(SECOND, sample_rate=3), "SAMPLE_RATE"),
        (lambda talk: [talk.append_audio(SECOND), talk.append_audio(SECOND, 8_000)], "began with 16000 Hz"),
        (lambda talk: talk.append_audio(np.zeros(16_000 * 121, np.float32)), "at most 120 s"),
    ],
)
def test_a_turn_that_is_wrong_is_refused_and_the_next_one_is_not(
    client: Any, misuse: Callable[[Any], object], words: str
) -> None:
    talk = client.conversation()
    with pytest.raises(InvalidRequest, match=words):
        misuse(talk)
    assert talk.respond("turn 1").collect().tokens == (0,)


def test_fields_of_a_turn_are_not_fields_of_a_conversation(client: Any) -> None:
    for name, value in {"audio": SECOND, "history": [1], "heard": 1, "read_only": 1}.items():
        with pytest.raises(InvalidRequest, match=f"^{name}"):
            client.conversation(**{name: value})


def test_a_conversation_goes_on_elsewhere(client: Any, double: ProtocolDouble) -> None:
    talk, other = client.conversation(), client.conversation()
    talk.respond("turn 1").collect()
    other.resume(talk.history)
    other.respond("turn 1").collect()
    assert sent(double)[1]["HISTORY"] == [1000, 0]


def test_what_was_heard_goes_elsewhere_with_the_history(client: Any, double: ProtocolDouble) -> None:
    talk, other = client.conversation(), client.conversation()
    talk.respond("turn 20").collect()
    talk.heard(0.5)
    other.resume(talk.history, talk.clips, talk.heard_tokens)
    other.respond("turn 1").collect()
    assert sent(double)[1]["HEARD"] == 6
    talk.resume(other.history)  # what was heard of an answer of before is of no other one
    talk.respond("turn 1").collect()
    assert "HEARD" not in sent(double)[2]


@settings(max_examples=100, deadline=None)
@given(steps=st.lists(st.sampled_from(["text", "audio", "respond", "prompt", "token", "end", "heard"]), max_size=30))
def test_any_order_of_calls_keeps_the_conversation_whole(steps: list[str]) -> None:
    """What is refused changes nothing; the history is always a prompt and the tokens that followed it."""
    turns, prompts = Turns(), 0
    expected: tuple[int, ...] = ()
    coming: list[int] | None = None
    tokens: list[int] = []
    for step in steps:
        answering = turns.answering
        try:
            if step == "text":
                turns.append_text("a")
            elif step == "audio":
                turns.append_audio(SECOND)
            elif step == "heard":
                turns.heard(1.0)
            elif step == "respond":
                turns.respond()
                coming, tokens = None, []
            elif step == "prompt" and answering:
                prompts += 1
                coming = [1000 + prompts]
                turns.event(PromptIds(tuple(coming)))
            elif step == "token" and answering:
                tokens.append(len(tokens))
                turns.event(TokensDelta((tokens[-1],)))
            elif step == "end":
                turns.end()
                if answering and coming is not None:
                    expected = (*coming, *tokens)
                    assert turns.seconds == 0
        except InvalidRequest:
            assert answering or step in ("respond", "heard")
        assert turns.history == expected
        assert turns.answering == ((step == "respond" and turns.answering) or (answering and step != "end"))


def test_a_conversation_that_is_left_reads_nothing_more(double: ProtocolDouble) -> None:
    async def talk() -> None:
        async with AsyncClient(double.url) as client:
            talk = client.conversation()
            talk.append_text("hang")
            await talk.append_audio(np.tile(SECOND, 5))
            await asyncio.to_thread(until, lambda: double.inputs)
            talk.stop_reading()
            await asyncio.to_thread(until, double.cancelled.is_set)
            talk.stop_reading()

    asyncio.run(talk())


def test_every_request_of_a_conversation_has_its_headers(client: Any, double: ProtocolDouble) -> None:
    talk = client.conversation(headers={"who": "ada"})
    talk.append_text("turn 1")
    talk.append_audio(np.tile(SECOND, 5))
    until(lambda: len(double.inputs) == 1)
    talk.respond().collect()
    assert [headers["who"] for headers in double.headers] == ["ada"] * 2
