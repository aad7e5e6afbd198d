"""Conversations over `/v1/chat/completions`: spoken answers that are gone on from, speech in several parts, stops."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from openai import NotFoundError, OpenAI

from client_protocol_double import ProtocolDouble, chunk_text
from gateway.context import Gateway
from gateway.settings import Settings
from gateway.voices import MODEL
from gateway_runs import running
from waiting import until

QUESTION = (Path(__file__).resolve().parents[3] / "examples" / "question.wav").read_bytes()
QUESTION_SAMPLES = 29_600
ALOUD: dict[str, Any] = {"modalities": ["text", "audio"], "audio": {"voice": "alloy", "format": "wav"}}
TURN = chunk_text(0, 0) + chunk_text(0, 1)


@pytest.fixture
def running_gateway(double: ProtocolDouble) -> Iterator[tuple[Gateway, OpenAI]]:
    double.spoken = double.otherwise = "turn 2"
    with running(Settings(servers=(double.url,))) as server:
        url = f"http://127.0.0.1:{server.port}/v1"
        with OpenAI(api_key="none", base_url=url, max_retries=0) as client:
            yield server.config.app.state.gateway, client  # type: ignore[union-attr]


@pytest.fixture
def client(running_gateway: tuple[Gateway, OpenAI]) -> OpenAI:
    return running_gateway[1]


def user(*parts: str | bytes) -> dict[str, Any]:
    """Texts, and sound files."""
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            sound = {"data": base64.b64encode(part).decode(), "format": "wav"}
            content.append({"type": "input_audio", "input_audio": sound})
    return {"role": "user", "content": content}


def ask(client: OpenAI, *messages: Any, **fields: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=list(messages), **fields)


def test_a_spoken_conversation_goes_on_from_the_id_of_the_last_answer(client: OpenAI, double: ProtocolDouble) -> None:
    """As OpenAI's guide has it: the sound of the user, and of the assistant only the id."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You are Ada."}]
    for turn in range(3):
        messages.append(user(QUESTION))
        answer = ask(client, *messages, **ALOUD).choices[0].message.audio
        messages.append({"role": "assistant", "audio": {"id": answer.id}})
        sent = double.inputs[turn]
        assert "MESSAGES" not in sent
        assert len(sent["AUDIO"]) == QUESTION_SAMPLES  # type: ignore[arg-type]
        assert ("SYSTEM" in sent) == (turn == 0)
        # The double's prompt is the history and the number of turns so far, its answer 0, 1.
        history = [id for before in range(turn) for id in (1000 + before, 0, 1)]
        assert np.asarray(sent.get("HISTORY", ())).tolist() == history


def test_the_speech_that_a_plus_checkpoint_needs_again_goes_with_the_next_turn(
    client: OpenAI, double: ProtocolDouble
) -> None:
    double.otherwise = double.spoken = "turn 2 0 2"  # the last two clips
    messages: list[dict[str, Any]] = []
    for turn in range(4):
        messages.append(user(*[QUESTION] * (1 + turn % 2)))  # turns of one and of two recordings
        answer = ask(client, *messages, **ALOUD).choices[0].message.audio
        messages.append({"role": "assistant", "audio": {"id": answer.id}})
    lengths = [np.asarray(sent.get("HISTORY_AUDIO_SAMPLES", ())).tolist() for sent in double.inputs]
    one, two = QUESTION_SAMPLES, 2 * QUESTION_SAMPLES
    assert lengths == [[], [one], [one, two], [two, one]]
    again, first = np.asarray(double.inputs[1]["HISTORY_AUDIO"]), np.asarray(double.inputs[0]["AUDIO"])
    assert np.array_equal(again, first)


def test_a_streamed_answer_is_kept_too_and_the_whole_message_may_be_sent_back(
    client: OpenAI, double: ProtocolDouble
) -> None:
    chunks = [chunk.choices[0].delta for chunk in ask(client, user(QUESTION), **ALOUD | {"stream": True})]
    audio = {name: value for chunk in chunks if chunk.audio for name, value in chunk.audio.to_dict().items()}
    assert audio["expires_at"] > 0
    message = {"role": "assistant", "content": None, "audio": audio | {"transcript": TURN}}
    ask(client, user(QUESTION), message, {"role": "system", "content": "Be glad."}, user("And then?"))
    assert np.asarray(double.inputs[1]["HISTORY"]).tolist() == [1000, 0, 1]
    assert (double.inputs[1]["TEXT"], "SYSTEM" in double.inputs[1]) == ("Be glad.\nAnd then?", False)


def test_where_the_messages_before_an_answer_are_others_its_words_are_used(
    client: OpenAI, double: ProtocolDouble
) -> None:
    answer = ask(client, user("One?"), **ALOUD).choices[0].message.audio
    ask(client, user("Two?"), {"role": "assistant", "audio": {"id": answer.id}}, user("And?"))
    assert "HISTORY" not in double.inputs[1]
    assert json.loads(str(double.inputs[1]["MESSAGES"])) == [
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": TURN.strip()},
    ]


@pytest.mark.parametrize("message", [{"content": "Three."}, {"audio": {"id": "audio_1", "transcript": "Three."}}])
def test_words_do_where_an_answer_is_not_kept(client: OpenAI, double: ProtocolDouble, message: dict[str, Any]) -> None:
    ask(client, user("One?"), {"role": "assistant", "audio": {"id": "audio_1"}} | message, user("And?"))
    assert json.loads(str(double.inputs[0]["MESSAGES"]))[1] == {"role": "assistant", "content": "Three."}


def test_an_answer_that_expired_is_an_error_that_says_so(running_gateway: tuple[Gateway, OpenAI]) -> None:
    gateway, client = running_gateway
    audio = ask(client, user("One?"), **ALOUD).choices[0].message.audio
    gateway.spoken_answers._clock = lambda: audio.expires_at + 1.0
    with pytest.raises(NotFoundError) as raised:
        ask(client, user("One?"), {"role": "assistant", "audio": {"id": audio.id}}, user("And?"))
    assert (raised.value.code, raised.value.param) == ("audio_not_found", "messages.1.audio.id")
    assert "send its words as content" in raised.value.message


def test_speech_in_several_parts_and_messages_is_one_turn(client: OpenAI, double: ProtocolDouble) -> None:
    ask(client, user(QUESTION, "Look:", QUESTION), user(QUESTION), user("That."))
    sent = double.inputs[0]
    assert len(sent["AUDIO"]) == 3 * QUESTION_SAMPLES  # type: ignore[arg-type]
    assert sent["TEXT"] == "Look:\nThat."


def test_too_much_speech_is_refused(client: OpenAI, gateway_url: str) -> None:
    message = user(*[QUESTION] * 65)
    body = {"model": MODEL, "messages": [message]}
    answer = httpx.post(f"{gateway_url}/v1/chat/completions", json=body, timeout=60)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_audio")
    assert "at most 120 s are taken" in answer.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_sequence_cuts_the_text_and_ends_the_work(client: OpenAI, double: ProtocolDouble, stream: bool) -> None:
    stop, asked = ["nowhere", "c2 é s"], user("chunks 1000 0.02")
    answer = ask(client, asked, stop=stop, stream=stream)
    if stream:
        choices = [chunk.choices[0] for chunk in answer]
        text = "".join(choice.delta.content or "" for choice in choices)
        reason = choices[-1].finish_reason
    else:
        text, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
        assert 4 <= answer.usage.completion_tokens <= 20
    assert (text, reason) == (chunk_text(0, 0) + chunk_text(0, 1) + "s0", "stop")
    until(double.cancelled.is_set)


@pytest.mark.parametrize("content", ["", None, " "])
def test_an_empty_answer_is_left_out(client: OpenAI, double: ProtocolDouble, content: str | None) -> None:
    """The gateway gives one itself, where a stop sequence comes first."""
    empty = ask(client, user("chunks 2"), stop="s0").choices[0].message
    assert empty.content == ""
    ask(client, user("One?"), empty.model_copy(update={"content": content}), user("And?"))
    assert (double.inputs[1]["TEXT"], "MESSAGES" in double.inputs[1]) == ("One?\nAnd?", False)
    said = {"role": "assistant", "content": "Two."}
    ask(client, user("One?"), said, user("Two?"), empty, user("And?"))
    assert double.inputs[2]["TEXT"] == "Two?\nAnd?"
    assert json.loads(str(double.inputs[2]["MESSAGES"])) == [{"role": "user", "content": "One?"}, said]


def test_what_looked_like_a_stop_sequence_comes_at_the_end(client: OpenAI) -> None:
    answer = ask(client, user("chunks 2"), stop="é end", stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in answer) == TURN
