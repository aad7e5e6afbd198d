"""What each event of a client does: sessions, items, responses, and everything that is refused."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

import pytest

from client_protocol_double import ProtocolDouble
from realtime_session import Event, Peer, session
from waiting import until

HAND = {"audio": {"input": {"turn_detection": None}}}
ORDER = [
    "response.created",
    "response.output_item.added",
    "conversation.item.added",
    "response.content_part.added",
    "response.output_audio_transcript.delta",
    "response.output_audio.delta",
    "response.output_audio.done",
    "response.output_audio_transcript.done",
    "response.content_part.done",
    "response.output_item.done",
    "conversation.item.done",
    "response.done",
]


def without_repeats(kinds: list[str]) -> list[str]:
    return list(dict.fromkeys(kinds))


def talk(double: ProtocolDouble, scenario: Any, **changes: Any) -> None:
    """Run a scenario, a coroutine function of a peer, over the double."""

    async def run() -> None:
        async with session(double.url, **changes) as peer:
            await scenario(peer)

    asyncio.run(run())


def test_a_session_is_what_it_was_set_to(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        created = peer.events[0]["session"]
        assert (created["id"], created["output_modalities"]) == ("sess_1", ["audio"])
        assert created["audio"]["input"]["turn_detection"]["type"] == "server_vad"
        changes = {
            "type": "realtime",
            "id": "other",
            "model": "other",
            "instructions": "You are Ada.",
            "max_output_tokens": 7,
            "output_modalities": ["audio", "text"],
            "audio": {
                "input": {"turn_detection": {"type": "semantic_vad", "eagerness": "low"}, "noise_reduction": None},
                "output": {"voice": {"id": "marin"}, "format": {"type": "audio/pcmu"}},
            },
        }
        await peer.send("session.update", session=changes)
        set_to = (await peer.until("session.updated"))["session"]
        assert set_to["audio"]["output"] == {"voice": "marin", "format": {"type": "audio/pcmu"}, "speed": 1.0}
        assert set_to["audio"]["input"]["turn_detection"]["eagerness"] == "low"
        assert (set_to["id"], set_to["model"], set_to["output_modalities"]) == ("sess_1", "vita-audio", ["audio"])
        tools = [{"type": "function", "name": "look_up", "parameters": {"type": "object"}}]  # taken, and never called
        changes = {"type": "realtime", "max_output_tokens": None, "tools": tools, "tool_choice": "auto"}
        await peer.send("session.update", session=changes)
        set_to = (await peer.until("session.updated"))["session"]
        assert (set_to["max_output_tokens"], set_to["instructions"]) == ("inf", "You are Ada.")
        assert set_to["tools"] == tools

    talk(double, scenario)


@pytest.mark.parametrize(
    ("event", "code", "param"),
    [
        ({"type": "session.update"}, "missing_required_parameter", "session"),
        ({"type": "session.update", "session": {"tools": {}}}, "invalid_value", "session.tools"),
        ({"type": "session.update", "session": {"type": "transcription"}}, "invalid_value", "session.type"),
        (
            {
                "type": "session.update",
                "session": {"audio": {"input": {"format": {"type": "audio/pcm", "rate": 16000}}}},
            },
            "invalid_value",
            "session.audio.input.format.rate",
        ),
        (
            {"type": "session.update", "session": {"audio": {"output": {"voice": "nobody"}}}},
            "invalid_value",
            "session.audio.output.voice",
        ),
        (
            {"type": "session.update", "session": {"audio": {"output": {"speed": 9}}}},
            "invalid_value",
            "session.audio.output.speed",
        ),
        ({"type": "input_audio_buffer.append", "audio": "äö"}, "invalid_value", "audio"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty", None),
        ({"type": "conversation.item.retrieve", "item_id": "no"}, "item_not_found", "item_id"),
        ({"type": "conversation.item.delete", "item_id": "no"}, "item_not_found", "item_id"),
        ({"type": "conversation.item.truncate", "item_id": "no", "audio_end_ms": 1}, "item_not_found", "item_id"),
        ({"type": "conversation.item.create", "item": {"type": "function_call"}}, "invalid_value", "item.type"),
        ({"type": "response.cancel"}, "response_cancel_not_active", None),
        ({"type": "response.cancel", "response_id": "no"}, "response_cancel_not_active", None),
        ({"type": "response.create", "response": {"input": []}}, "invalid_value", "response.input"),
        (
            {"type": "response.create", "response": {"max_output_tokens": 0}},
            "invalid_value",
            "response.max_output_tokens",
        ),
        (
            {"type": "response.create", "response": {"audio": {"output": {"format": 3}}}},
            "invalid_value",
            "response.audio.output.format",
        ),
        ({"type": "output_audio_buffer.clear"}, "unknown_event", "type"),
        ({"type": "response.start"}, "unknown_event", "type"),
        ({}, "missing_required_parameter", "type"),
        ([], "invalid_type", None),
    ],
)
def test_a_wrong_event_is_an_error_that_names_it_and_the_session_goes_on(
    double: ProtocolDouble, event: Any, code: str, param: str | None
) -> None:
    async def scenario(peer: Peer) -> None:
        named = {**event, "event_id": "mine"} if isinstance(event, dict) else event
        await peer.protocol.handle(json.dumps(named))
        error = await peer.error()
        assert (error["code"], error["param"]) == (code, param)
        assert error["event_id"] == ("mine" if isinstance(event, dict) else None)
        assert "\n" not in error["message"]
        assert (await peer.say("turn 1"))["status"] == "completed"

    talk(double, scenario, **HAND)


@pytest.mark.parametrize("text", ["", "{", "nul", "[" * 100_000, '"\\ud800"', b"\xff\xfe"])
def test_what_is_no_json_is_an_error(double: ProtocolDouble, text: str | bytes) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.protocol.handle(text)
        assert (await peer.error())["type"] == "invalid_request_error"

    talk(double, scenario)


def test_a_response_has_its_events_in_order(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await peer.write("turn 3", item_id="msg_1")
        assert item_id == "msg_1"
        await peer.send("response.create", response={"metadata": {"client_event_id": "e1"}})
        created = (await peer.until("response.created"))["response"]
        assert (created["status"], created["metadata"]) == ("in_progress", {"client_event_id": "e1"})
        done = (await peer.until("response.done"))["response"]
        begin = peer.kinds.index("response.created")
        assert without_repeats(peer.kinds[begin:]) == ORDER
        assert (done["id"], done["status"], done["metadata"]) == (created["id"], "completed", {"client_event_id": "e1"})
        [item] = done["output"]
        transcript = "s0c0 é s0c1 é s0c2 é "
        assert item["content"] == [{"type": "output_audio", "transcript": transcript}]
        added = next(event for event in peer.events[begin:] if event["type"] == "conversation.item.added")
        assert (added["previous_item_id"], added["item"]["id"]) == ("msg_1", item["id"])
        deltas = [event for event in peer.events if event["type"] == "response.output_audio.delta"]
        assert {event["item_id"] for event in deltas} == {item["id"]}
        assert sum(len(base64.b64decode(event["delta"])) for event in deltas) == pytest.approx(0.3 * 48_000, abs=4)
        assert peer.use.seconds == pytest.approx(0.3, abs=1e-3)
        assert done["usage"]["output_tokens"] == 3

    talk(double, scenario)


def test_text_is_answered_in_text(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        done = await peer.say("turn 2")
        assert done["output"][0]["content"] == [{"type": "output_text", "text": "s0c0 é s0c1 é "}]
        kinds = {kind for kind in peer.kinds if "audio" in kind}
        assert not kinds
        assert "response.output_text.done" in peer.kinds
        assert double.inputs[0]["TASK"] == "text"

    talk(double, scenario, output_modalities=["text"])


def test_what_was_asked_of_the_answer_reaches_the_server(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.write("turn")
        await peer.write("1")
        await peer.send("response.create", response={"max_output_tokens": 9})
        await peer.until("response.done")
        await peer.say("turn 1")
        first, second = double.inputs
        assert (first["TEXT"], first["SYSTEM"], first["MAX_TOKENS"]) == ("turn 1", "You are Ada.", 9)
        assert (second["HISTORY"].tolist(), second["MAX_TOKENS"]) == ([1000, 0], 50)  # type: ignore[attr-defined]
        assert "SYSTEM" not in second

    talk(double, scenario, instructions="You are Ada.", max_output_tokens=50)


def test_a_second_response_waits_for_the_first(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.write("turn 50 0.01")
        await peer.send("response.create")
        await peer.until("response.output_audio.delta")
        await peer.send("response.create", event_id="again")
        error = await peer.error()
        assert (error["code"], error["event_id"]) == ("conversation_already_has_active_response", "again")
        await peer.send("response.cancel")
        assert (await peer.until("response.done"))["response"]["status"] == "cancelled"
        assert (await peer.say("turn 1"))["status"] == "completed"

    talk(double, scenario)


def test_a_cancelled_response_ends_at_once_and_on_the_server(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.write("turn 1000 0.01")
        await peer.send("response.create")
        await peer.until("response.output_audio.delta")
        await peer.send("response.cancel")
        done = (await peer.until("response.done"))["response"]
        assert done["status_details"] == {"type": "cancelled", "reason": "client_cancelled"}
        assert done["output"][0]["status"] == "incomplete"
        await asyncio.to_thread(until, double.cancelled.is_set)
        seen = len(peer.events)
        await asyncio.sleep(0.1)
        assert len(peer.events) == seen
        await peer.say("turn 1")
        assert double.inputs[1]["HISTORY"][0] == 1000  # type: ignore[index]

    talk(double, scenario)


@pytest.mark.parametrize(
    ("script", "code", "kind"),
    [
        ("ends failed engine_error the flow broke", "engine_error", "server_error"),
        ("ends failed server_full full", "server_full", "server_error"),
        ("abort UNAVAILABLE gone", "unavailable", "server_error"),
        ("abort INVALID_ARGUMENT [vita:invalid_request field=TEXT] bad", "invalid_request", "invalid_request_error"),
        ("short", "stream_broken", "server_error"),
    ],
)
def test_a_failure_of_the_server_is_the_responses_and_the_session_lives(
    double: ProtocolDouble, script: str, code: str, kind: str
) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await peer.write(script)
        await peer.send("response.create")
        failed = (await peer.until("response.done"))["response"]
        assert (failed["status"], failed["status_details"]["type"]) == ("failed", "failed")
        assert (failed["status_details"]["error"]["code"], failed["status_details"]["error"]["type"]) == (code, kind)
        assert "error" not in peer.kinds
        await peer.send("conversation.item.delete", item_id=item_id)
        await peer.until("conversation.item.deleted")
        assert (await peer.say("turn 1"))["status"] == "completed"

    talk(double, scenario)


def test_an_answer_that_was_cut_is_incomplete(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        done = await peer.say("ends done - max_tokens")
        assert (done["status"], done["status_details"]["reason"]) == ("incomplete", "max_output_tokens")

    talk(double, scenario)


def test_nothing_to_answer_fails_the_response_alone(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.send("response.create")
        failed = (await peer.until("response.done"))["response"]
        assert failed["status_details"]["error"]["code"] == "invalid_request"
        assert failed["output"] == []
        await peer.send("response.create", response={"instructions": "turn 1"})
        assert (await peer.until("response.done"))["response"]["status"] == "completed"

    talk(double, scenario)


def test_instructions_without_words_are_none(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        for response in ({}, {"instructions": "\n"}, {"instructions": " ", "conversation": "none"}):
            assert (await peer.say("turn 1", **response))["status"] == "completed"
        assert [("SYSTEM" in inputs, inputs["TEXT"]) for inputs in double.inputs] == [(False, "turn 1")] * 3
        await peer.send("session.update", session={"type": "realtime", "instructions": "You are Ada."})
        await peer.send("session.update", session={"type": "realtime", "instructions": " "})
        assert (await peer.until("session.updated"))["session"]["instructions"] == "You are Ada."
        assert (await peer.until("session.updated"))["session"]["instructions"] == " "

    talk(double, scenario, **HAND, instructions=" ")


def test_a_response_aside_is_no_part_of_the_conversation(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        first = await peer.say("turn 1")
        message = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "turn 2"}]}
        aside = {"conversation": "none", "instructions": "Classify.", "input": [message], "metadata": {"for": "me"}}
        await peer.send("response.create", response=aside)
        done = (await peer.until("response.done"))["response"]
        assert (done["conversation_id"], done["metadata"]) == (None, {"for": "me"})
        assert done["output"][0]["content"][0]["transcript"] == "s0c0 é s0c1 é "
        assert peer.kinds.count("conversation.item.added") == 2
        reference = {"type": "item_reference", "id": first["output"][0]["id"]}
        await peer.send("response.create", response={"conversation": "none", "input": [reference]})
        await peer.until("response.done")
        await peer.say("turn 1")
        second, third, fourth = double.inputs[1:]
        assert ("HISTORY" in second, second["SYSTEM"]) == (False, "Classify.")
        assert third["TEXT"] == "Assistant: s0c0 é "
        assert fourth["HISTORY"].tolist() == [1000, 0]  # type: ignore[attr-defined]

    talk(double, scenario)


def test_there_are_so_many_responses_aside(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.write("hang")
        for _ in range(5):
            await peer.send("response.create", response={"conversation": "none"})
        assert (await peer.error())["code"] == "rate_limit_exceeded"
        ids = [event["response"]["id"] for event in peer.events if event["type"] == "response.created"]
        assert len(ids) == 4
        for response_id in ids:
            await peer.send("response.cancel", response_id=response_id)
            assert (await peer.until("response.done"))["response"]["id"] == response_id

    talk(double, scenario)


def test_items_are_kept_in_order_by_id(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        async def create(item_id: str, previous: str | None, text: str = "") -> Event:
            content = [{"type": "input_text", "text": text}]
            item = {"type": "message", "role": "user", "content": content, "id": item_id}
            await peer.send("conversation.item.create", item=item, previous_item_id=previous)
            return await peer.until("conversation.item.added")

        assert (await create("a", "root", "turn"))["previous_item_id"] is None
        assert (await create("b", "a", "1"))["previous_item_id"] == "a"
        assert (await create("c", "a", "0.5"))["previous_item_id"] == "a"
        assert (await create("d", None))["previous_item_id"] == "b"
        assert (await create("e", "root"))["previous_item_id"] is None
        await peer.send("conversation.item.create", item={"type": "message", "role": "user", "content": [], "id": "a"})
        assert (await peer.error())["code"] == "item_create_duplicate_item_id"
        await peer.send("conversation.item.retrieve", item_id="c")
        assert (await peer.until("conversation.item.retrieved"))["item"]["content"][0]["text"] == "0.5"
        await peer.send("conversation.item.delete", item_id="c")
        await peer.until("conversation.item.deleted")
        await peer.send("response.create")
        await peer.until("response.done")
        assert double.inputs[0]["TEXT"] == "turn 1"

    talk(double, scenario)


def test_what_was_answered_cannot_be_deleted_but_the_last_answer_can(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await peer.write("turn 2")
        await peer.send("response.create")
        answer = (await peer.until("response.done"))["response"]["output"][0]
        await peer.send("conversation.item.delete", item_id=item_id)
        assert (await peer.error())["code"] == "item_delete_not_possible"
        await peer.send("conversation.item.delete", item_id=answer["id"])
        await peer.until("conversation.item.deleted")
        await peer.say("turn 1")
        assert double.inputs[1]["HEARD"] == 0

    talk(double, scenario)


def test_an_earlier_conversation_is_brought_along_in_text(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        await peer.write("Be brief.", "system")
        await peer.write("My name is Ada.")
        await peer.write("Hello Ada.", "assistant")
        await peer.write("What is my name?")
        await peer.send("response.create")
        await peer.until("response.done")
        asked = double.inputs[0]
        assert asked["TEXT"] == "Be brief. What is my name?"
        assert json.loads(str(asked["MESSAGES"])) == [
            {"role": "user", "content": "My name is Ada."},
            {"role": "assistant", "content": "Hello Ada."},
        ]

    talk(double, scenario)


def test_an_answer_is_truncated_to_what_was_heard(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        first = (await peer.say("turn 10"))["output"][0]["id"]
        await peer.send("conversation.item.truncate", item_id=first, content_index=0, audio_end_ms=400)
        assert (await peer.until("conversation.item.truncated"))["audio_end_ms"] == 400
        await peer.send("conversation.item.retrieve", item_id=first)
        retrieved = (await peer.until("conversation.item.retrieved"))["item"]
        assert retrieved["content"] == [{"type": "output_audio", "transcript": ""}]
        second = (await peer.say("turn 10"))["output"][0]["id"]
        await peer.send("conversation.item.truncate", item_id=first, content_index=0, audio_end_ms=100)
        assert (await peer.until("conversation.item.truncated"))["audio_end_ms"] == 400, "an older one stays as it is"
        await peer.send("conversation.item.truncate", item_id=second, content_index=0, audio_end_ms=5000)
        assert (await peer.until("conversation.item.truncated"))["audio_end_ms"] == pytest.approx(1000, abs=2)
        await peer.say("turn 1")
        assert double.inputs[1]["HEARD"] == 5, "12.5 tokens a second"
        assert "HEARD" not in double.inputs[2], "all of it was heard"

    talk(double, scenario)


def test_faster_sound_is_shorter_and_truncated_by_the_listeners_time(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = (await peer.say("turn 30"))["output"][0]["id"]
        assert peer.use.seconds == pytest.approx(2.0, abs=0.1)
        await peer.send("conversation.item.truncate", item_id=item_id, content_index=0, audio_end_ms=800)
        await peer.until("conversation.item.truncated")
        await peer.say("turn 1")
        assert double.inputs[1]["HEARD"] == 15, "1.2 s of the voice's own time"

    talk(double, scenario, audio={"output": {"speed": 1.5}})


def test_only_an_answer_with_sound_can_be_truncated(double: ProtocolDouble) -> None:
    async def scenario(peer: Peer) -> None:
        item_id = await peer.write("turn 1")
        await peer.send("conversation.item.truncate", item_id=item_id, audio_end_ms=0)
        assert (await peer.error())["param"] == "item_id"

    talk(double, scenario)
